"""The matrix of cases: reference fixtures, and tiny configurations of every architecture."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).parent
FIXTURES = TESTS / "fixtures"
ROOT = TESTS.parent
READER = FIXTURES / "digits"
"""A trained reader of handwritten digits, one to three on an image, as English words."""
DIGITS = FIXTURES / "digit_images"
SHARED = ROOT.parent / "shared" / "fixtures"
"""The same fixtures and more, in every format that other libraries wrote them in."""

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

PAIRS = tuple(sorted(folder.name for folder in FIXTURES.iterdir() if (folder / "expected.npz").is_file()))
"""Fixtures of whole models."""

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "patch_size": 4, "window_size": 4, "mlp_ratio": 2.0}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40, "vocab_size": 61}
TROCR = {"d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 40, "vocab_size": 61}
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 61}
BERT |= {"max_position_embeddings": 40}
DISTILBERT = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "vocab_size": 61, "max_position_embeddings": 40}
BART = TROCR | {"max_position_embeddings": 40, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8}

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", **VIT, "image_size": 32, "patch_size": 8},
    "vit-rectangular": {"model_type": "vit", **VIT, "image_size": [24, 40], "patch_size": 8, "hidden_act": "gelu_new"},
    "vit-nobias-1layer": {"model_type": "vit", **VIT, "num_hidden_layers": 1, "image_size": 35, "patch_size": 8}
    | {"qkv_bias": False, "layer_norm_eps": 1e-5, "num_channels": 1},
    "deit": {"model_type": "deit", **VIT, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
    "beit": {"model_type": "beit", **VIT, "image_size": 32, "patch_size": 8, "use_relative_position_bias": True}
    | {"use_absolute_position_embeddings": True, "use_mask_token": True},
    "beit-shared-rectangular": {"model_type": "beit", **VIT, "image_size": [24, 40], "patch_size": 8}
    | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    "beit-both-unscaled": {
        "model_type": "beit",
        **VIT,
        "image_size": 28,
        "patch_size": 8,
        "layer_scale_init_value": 0.0,
    }
    | {"use_shared_relative_position_bias": True, "use_relative_position_bias": True, "num_channels": 1},
    "beit-bare-1layer": {"model_type": "beit", **VIT, "image_size": 32, "patch_size": 16, "num_hidden_layers": 1},
    "swin": {"model_type": "swin", **SWIN, "image_size": 32},
    "swin-rectangular": {"model_type": "swin", **SWIN, "image_size": [44, 62], "window_size": 3, "qkv_bias": False}
    | {"depths": [2, 1, 2], "num_heads": [1, 2, 4], "embed_dim": 8, "layer_norm_eps": 1e-3},
    "swin-positions-1stage": {"model_type": "swin", **SWIN, "image_size": 36, "window_size": 4, "depths": [2]}
    | {"num_heads": [4], "embed_dim": 32, "use_absolute_embeddings": True, "num_channels": 1},
    "donut": {"model_type": "donut-swin", **SWIN, "image_size": [40, 56], "window_size": 3},
    "donut-nobias": {"model_type": "donut-swin", **SWIN, "image_size": [30, 20], "qkv_bias": False, "depths": [1, 2]}
    | {"window_size": 3, "hidden_act": "gelu_new"},
    "swinv2": {"model_type": "swinv2", **SWIN, "image_size": 32},
    "swinv2-rectangular": {"model_type": "swinv2", **SWIN, "image_size": [44, 70], "window_size": 6, "qkv_bias": False}
    | {"pretrained_window_sizes": [5, 3, 0, 0], "layer_norm_eps": 1e-3},
    "swinv2-wide-1stage": {"model_type": "swinv2", **SWIN, "image_size": [12, 30], "window_size": 7, "depths": [2]}
    | {"num_heads": [4], "embed_dim": 32, "pretrained_window_sizes": [2]},
    "dinov2": {"model_type": "dinov2", **PLAIN, "image_size": 32, "patch_size": 8, "mlp_ratio": 2},
    "dinov2-swiglu": {"model_type": "dinov2", **PLAIN, "image_size": 28, "patch_size": 7, "use_swiglu_ffn": True}
    | {"use_mask_token": False, "layerscale_value": 0.5},
    "dinov2-nobias-1layer": {"model_type": "dinov2", **PLAIN, "image_size": 24, "patch_size": 8, "qkv_bias": False}
    | {"num_hidden_layers": 1, "num_channels": 1},
    "registers": {"model_type": "dinov2_with_registers", **PLAIN, "image_size": 40, "patch_size": 8, "mlp_ratio": 2},
    "registers-swiglu": {"model_type": "dinov2_with_registers", **PLAIN, "image_size": 32, "patch_size": 8}
    | {"num_register_tokens": 1, "use_swiglu_ffn": True},
}
"""Tiny encoders, each an odd corner of its architecture: name -> config."""

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt2-untied-scaled": {"model_type": "gpt2", **GPT2, "tie_word_embeddings": False, "n_inner": 30}
    | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu", "n_embd": 32, "n_head": 2},
    "gpt2-unscaled-1layer": {"model_type": "gpt2", **GPT2, "scale_attn_weights": False, "n_layer": 1},
    "trocr": {"model_type": "trocr", **TROCR, "max_position_embeddings": 40},
    "trocr-plain": {"model_type": "trocr", **TROCR, "max_position_embeddings": 40, "layernorm_embedding": False}
    | {"scale_embedding": True, "tie_word_embeddings": False, "cross_attention_hidden_size": 32},
    "bert": {"model_type": "bert", **BERT},
    "bert-untied-relu": {"model_type": "bert", **BERT, "tie_word_embeddings": False, "hidden_act": "relu"}
    | {"type_vocab_size": 1, "num_hidden_layers": 1, "layer_norm_eps": 1e-6},
    "bert-samewidth-pad0": {"model_type": "bert", **BERT, "hidden_size": 32, "num_attention_heads": 2}
    | {"pad_token_id": 0, "hidden_act": "gelu_new", "type_vocab_size": 3},
    "roberta": {"model_type": "roberta", **BERT, "type_vocab_size": 1},
    "roberta-untied-pad5": {"model_type": "roberta", **BERT, "tie_word_embeddings": False, "pad_token_id": 5}
    | {"hidden_act": "relu", "num_hidden_layers": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {"model_type": "xlm-roberta", **BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta-tanh-1layer": {"model_type": "xlm-roberta", **BERT, "num_hidden_layers": 1}
    | {"hidden_act": "gelu_pytorch_tanh", "pad_token_id": 0, "hidden_size": 32, "num_attention_heads": 4},
    "camembert": {"model_type": "camembert", **BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "camembert-untied": {"model_type": "camembert", **BERT, "tie_word_embeddings": False, "hidden_act": "silu"},
    "electra": {"model_type": "electra", **BERT, "embedding_size": 16},
    "electra-untied": {"model_type": "electra", **BERT, "embedding_size": 28, "tie_word_embeddings": False}
    | {"hidden_act": "relu", "num_hidden_layers": 1, "pad_token_id": 0},
    "electra-samewidth": {"model_type": "electra", **BERT, "embedding_size": 24, "type_vocab_size": 1},
    "distilbert": {"model_type": "distilbert", **DISTILBERT},
    "distilbert-untied": {"model_type": "distilbert", **DISTILBERT, "tie_word_embeddings": False, "n_layers": 1}
    | {"activation": "relu", "sinusoidal_pos_embds": True, "pad_token_id": 0},
    "bart": {"model_type": "bart", **BART},
    "bart-scaled-untied": {"model_type": "bart", **BART, "scale_embedding": True, "tie_word_embeddings": False}
    | {"activation_function": "relu", "encoder_layers": 3, "decoder_layers": 1},
    "bart-deeper": {"model_type": "bart", **BART, "decoder_layers": 3, "num_hidden_layers": 1, "pad_token_id": 7}
    | {"d_model": 32, "decoder_attention_heads": 2, "activation_function": "gelu_new"},
    "mbart": {"model_type": "mbart", **BART, "scale_embedding": True},
    "mbart-untied-1layer": {"model_type": "mbart", **BART, "tie_word_embeddings": False, "decoder_layers": 1}
    | {"activation_function": "quick_gelu", "encoder_layers": 2},
    "trocr-sinusoidal": {"model_type": "trocr", **TROCR, "use_learned_position_embeddings": False, "d_model": 27}
    | {"activation_function": "relu", "scale_embedding": True},
}
"""Tiny decoders: name -> config. A cross_attention_hidden_size has to be the width of the ViT above."""

REFERENCE_FAILS = {"trocr-sinusoidal": "transformers 5 builds its table on the meta device and never fills it"}
REFERENCE_FAILS |= {name: "transformers has no DistilBERT decoder" for name in DECODERS if "distilbert" in name}
"""Cases that transformers' own class cannot run, and why."""

REFERENCE_UNCACHED = ("bart", "bart-deeper", "mbart")
"""Decoders deeper than the encoder they came with: transformers 5 makes them a cache of the encoder's depth, and needs
use_cache=False."""

SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def model_config(encoder: str, decoder: str) -> dict[str, Any]:
    """config.json of one pair from the tables above."""
    half = {**DECODERS[decoder], "is_decoder": True, "add_cross_attention": True, "bos_token_id": 0, "eos_token_id": 2}
    half = {"pad_token_id": 1} | half
    return {"model_type": "vision-encoder-decoder", "encoder": ENCODERS[encoder], "decoder": half, **SPECIAL}


def model_type(name: str) -> str:
    """The architecture of a case."""
    return (ENCODERS.get(name) or DECODERS[name])["model_type"]


MIXED = [
    ("beit", "roberta-untied-pad5"),
    ("beit-shared-rectangular", "xlm-roberta"),
    ("deit", "trocr"),
    ("dinov2", "bert-untied-relu"),
    ("donut", "mbart"),
    ("registers-swiglu", "camembert"),
    ("swin", "bart-deeper"),
    ("swin-rectangular", "bert-samewidth-pad0"),
    ("swinv2", "electra"),
    ("vit-rectangular", "mbart-untied-1layer"),
]
"""Pairs in which neither half is the usual one."""


def models(*quick: tuple[str, str]) -> list[Any]:
    """Every encoder with GPT-2, every decoder with ViT, and mixed pairs; what shows no further architecture, or is not
    one of the `quick` pairs where they are named, is left to the full run."""
    pairs = [(encoder, "gpt2") for encoder in ENCODERS] + [("vit", decoder) for decoder in DECODERS][1:] + MIXED
    seen: set[str] = set()
    params = []
    for pair in pairs:
        kinds = {model_type(name) for name in pair}
        later = pair not in quick if quick else kinds <= seen
        params.append(pytest.param(*pair, id="-".join(pair), marks=[pytest.mark.slow] if later else []))
        seen |= kinds
    return params


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch for any tiny model."""

    pixel_values: np.ndarray
    decoder_input_ids: np.ndarray
    decoder_attention_mask: np.ndarray
    labels: np.ndarray


def inputs(config: dict[str, Any], batch: int = 3, tokens: int = 9, seed: int = 0) -> Inputs:
    """Random pixels and tokens; the last tokens of every second row are padding, in the labels too."""
    rng = np.random.default_rng(seed)
    encoder = config["encoder"]
    size = encoder.get("image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = rng.standard_normal((batch, encoder.get("num_channels", 3), height, width)).astype(np.float32)
    ids = rng.integers(3, config["decoder"]["vocab_size"], (batch, tokens), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[::2, -2:] = 0
    ids[mask == 0] = SPECIAL["pad_token_id"]
    return Inputs(pixels, ids, mask, np.where(mask == 1, ids, -100))


def fixture(name: str) -> tuple[Path, dict[str, np.ndarray], dict[str, float]]:
    """A fixture's folder, its expected arrays, and its gradient norms by stored name (-1: none flows)."""
    folder = FIXTURES / name
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    names = json.loads((folder / "grad_names.json").read_text())
    return folder, expected, dict(zip(names, expected["grad_norms"].tolist(), strict=True))
