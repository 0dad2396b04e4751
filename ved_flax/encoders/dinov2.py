"""DINOv2 (arXiv:2304.07193), without and with registers (arXiv:2309.16588)."""

import jax
import jax.numpy as jnp

from ved_core.configs import Dinov2Config
from ved_flax.encoders.plain import PlainEncoder, broadcast
from ved_flax.layers.build import Builder


class Dinov2Encoder(PlainEncoder):
    """Image to tokens: CLS, registers, patches."""

    def __init__(self, cfg: Dinov2Config, make: Builder) -> None:
        super().__init__(cfg, make)
        self.registers = make.parameter(1, cfg.registers, cfg.hidden_size) if cfg.registers else None

    def embed(self, pixels_BCHW: jax.Array, interpolate_pos_encoding: bool) -> jax.Array:
        """As the frame's; registers have no positions."""
        x = super().embed(pixels_BCHW, interpolate_pos_encoding)
        if self.registers is None:
            return x
        return jnp.concatenate([x[:, :1], broadcast(self.registers, x), x[:, 1:]], axis=1)
