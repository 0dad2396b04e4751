"""Vision encoders by model_type. Each: pixel_values (B, C, H, W) to EncoderOutput."""

from flax import nnx

from ved_core.configs import EncoderConfig
from ved_flax.encoders.vit import ViTEncoder
from ved_flax.layers.build import Builder

ENCODERS: dict[str, type[ViTEncoder]] = {"vit": ViTEncoder, "deit": ViTEncoder}


def build_encoder(cfg: EncoderConfig, make: Builder) -> nnx.Module:
    """The encoder that a config describes."""
    return ENCODERS[cfg.model_type](cfg, make)
