"""The three models that are measured, at the sizes of well-known checkpoints, with random weights."""

from pathlib import Path
from typing import NamedTuple

from ved_core.configs import (
    DonutSwinConfig,
    GPT2Config,
    MBartConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    ViTConfig,
)

NEW_TOKENS = 24


class Size(NamedTuple):
    """Of an input image."""

    height: int
    width: int


def vit_gpt2() -> VisionEncoderDecoderConfig:
    """nlpconnect/vit-gpt2-image-captioning: ViT-B/16 at 224 and GPT-2 124M with cross-attention."""
    return _joined(ViTConfig(), GPT2Config(), start=50256, pad=50256, end=50256)


def trocr_base() -> VisionEncoderDecoderConfig:
    """microsoft/trocr-base-handwritten: ViT-B/16 at 384 without qkv bias and 12 layers of width 1024."""
    encoder = ViTConfig(image_size=384, qkv_bias=False)
    decoder = TrOCRConfig(vocab_size=50265, cross_attention_hidden_size=768)
    return _joined(encoder, decoder, start=2, pad=1, end=2)


def donut() -> VisionEncoderDecoderConfig:
    """naver-clova-ix/donut-base: a Swin of 20 blocks at 1280 x 960 and 4 layers of mBART."""
    encoder = DonutSwinConfig(
        image_size=[1280, 960],
        embed_dim=128,
        depths=[2, 2, 14, 2],
        num_heads=[4, 8, 16, 32],
        window_size=10,
    )
    decoder = MBartConfig(vocab_size=57525, decoder_layers=4, max_position_embeddings=1536, scale_embedding=True)
    return _joined(encoder, decoder, start=2, pad=1, end=2)


def vit_small() -> VisionEncoderDecoderConfig:
    """ViT-S/16 and the first 6 layers of a GPT-2 of width 384 with BERT's vocabulary: 55.7 M parameters to train."""
    encoder = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    decoder = GPT2Config(n_embd=384, n_head=6, n_layer=6)
    return _joined(encoder, decoder, start=50256, pad=50256, end=50256)


def tiny() -> VisionEncoderDecoderConfig:
    """Nothing real: to see that a row runs."""
    encoder = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    decoder = GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=200)
    return _joined(encoder, decoder, start=199, pad=199, end=199)


MODELS = {"vit-gpt2": vit_gpt2, "trocr-base": trocr_base, "donut": donut}
TRAINED = "vit-small-gpt2"
CONFIGS = MODELS | {TRAINED: vit_small, "tiny": tiny}


def config(name: str) -> VisionEncoderDecoderConfig:
    return CONFIGS[name]()


def size(name: str) -> Size:
    """What images the model takes."""
    given = config(name).encoder.image_size
    return Size(given, given) if isinstance(given, int) else Size(*given)


def checkpoint(name: str, folder: Path) -> Path:
    """The model's checkpoint inside `folder`, newly initialised where it is not there yet. Needs PyTorch."""
    place = folder / name
    if not (place / "config.json").exists():
        import torch

        from ved_torch import VisionEncoderDecoderModel

        generator = torch.Generator().manual_seed(0)
        VisionEncoderDecoderModel(config(name), generator=generator).save_pretrained(place)
    return place


def _joined(encoder, decoder, *, start: int, pad: int, end: int) -> VisionEncoderDecoderConfig:
    tokens = {"decoder_start_token_id": start, "pad_token_id": pad, "eos_token_id": end}
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **tokens)
