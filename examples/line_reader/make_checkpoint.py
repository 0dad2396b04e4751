"""Write the model's config, tokenizer and image processor: the folder `checkpoint` beside this file."""

import argparse
import json
from pathlib import Path

from texts import ALPHABET
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>")
HEIGHT, WIDTH = 32, 320


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character; others are left out."""
    units = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(c)[0][0] for c in ALPHABET]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *units])}
    made = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    start, padding, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=start,
        pad_token=padding,
        eos_token=end,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


def config() -> dict:
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    encoder = {
        "model_type": "vit",
        "image_size": [HEIGHT, WIDTH],
        "patch_size": [HEIGHT, 8],
        "hidden_size": 128,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.05,
    }
    decoder = {
        "model_type": "gpt2",
        "add_cross_attention": True,
        "is_decoder": True,
        "vocab_size": len(SPECIAL) + len(ALPHABET),
        "n_positions": 64,
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 384,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": 0.05,
        **tokens,
    }
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "model_type": "vision-encoder-decoder",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "encoder": encoder,
        "decoder": decoder,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "checkpoint")
    folder = parser.parse_args().folder
    tokenizer().save_pretrained(folder)
    # The line keeps its shape: as high as the canvas, or as wide if it is a long one, and begins at the left.
    image_processor = {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_detection",
        "do_convert_annotations": False,
        "do_resize": True,
        "size": {"max_height": HEIGHT, "max_width": WIDTH},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.75] * 3,  # paper and padding near 0, ink far from it
        "image_std": [0.4] * 3,
        "do_pad": True,
        "pad_size": {"height": HEIGHT, "width": WIDTH},
    }
    write(folder / "preprocessor_config.json", image_processor)
    generation = {"bos_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    write(folder / "config.json", config())
    write(folder / "generation_config.json", generation | {"max_length": 48})
    # transformers 5 writes a class that transformers 4 does not know.
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(folder / "tokenizer_config.json", described | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
