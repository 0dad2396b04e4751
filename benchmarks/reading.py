"""What `ved read` needs beside a model: an image, an image processor and a tokenizer of GPT-2's size."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = 50257
IMAGE_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def complete(folder: Path) -> Path:
    """Put them into a checkpoint's folder; returns the image."""
    image = folder / "image.png"
    if image.exists():
        return image
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR))
    vocabulary = {f"word{i}": i for i in range(WORDS - 1)} | {"<end>": WORDS - 1}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": WORDS - 1, "content": "<end>", "special": True} | dict.fromkeys(FLAGS, False)],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<end>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>"})
    )
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    return image


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
