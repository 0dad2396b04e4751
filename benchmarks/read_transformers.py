"""`ved read IMAGE --model FOLDER` as anybody would write it with transformers."""

import sys

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

torch.set_num_threads(2)
folder, image, new = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
tokenizer = AutoTokenizer.from_pretrained(folder)
pixels = processor(images=Image.open(image).convert("RGB"), return_tensors="pt").pixel_values
ids = model.generate(pixels, num_beams=1, do_sample=False, min_new_tokens=new, max_new_tokens=new)
print(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
