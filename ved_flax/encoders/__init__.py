"""Vision encoders by model_type. Each: pixel_values (B, C, H, W) to EncoderOutput."""

from collections.abc import Callable

from flax import nnx

from ved_core.configs import EncoderConfig
from ved_flax.encoders.base import Encoder
from ved_flax.encoders.beit import BeitEncoder
from ved_flax.encoders.dinov2 import Dinov2Encoder
from ved_flax.encoders.swin import SwinEncoder
from ved_flax.encoders.swinv2 import Swinv2Encoder
from ved_flax.encoders.vit import ViTEncoder
from ved_flax.layers.build import Builder

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "vit": ViTEncoder,
    "deit": ViTEncoder,
    "beit": BeitEncoder,
    "swin": SwinEncoder,
    "donut-swin": SwinEncoder,
    "swinv2": Swinv2Encoder,
    "dinov2": Dinov2Encoder,
    "dinov2_with_registers": Dinov2Encoder,
}


def build_encoder(cfg: EncoderConfig, make: Builder | None = None) -> Encoder:
    """The encoder that a config describes, newly initialised."""
    return ENCODERS[cfg.model_type](cfg, Builder(nnx.Rngs(0)) if make is None else make)
