"""DINOv2 (arXiv:2304.07193), without and with registers (arXiv:2309.16588)."""

import torch
from torch import Tensor

from ved_core.configs import Dinov2Config
from ved_torch.encoders.plain import PlainEncoder
from ved_torch.layers.build import Builder


class Dinov2Encoder(PlainEncoder):
    """Image to tokens: CLS, registers, patches."""

    def __init__(self, cfg: Dinov2Config, make: Builder) -> None:
        super().__init__(cfg, make)
        self.registers = make.parameter(1, cfg.registers, cfg.hidden_size) if cfg.registers else None

    def embed(self, pixels_BCHW: Tensor, interpolate_pos_encoding: bool) -> Tensor:
        """As the frame's; registers have no positions."""
        x = super().embed(pixels_BCHW, interpolate_pos_encoding)
        if self.registers is None:
            return x
        return torch.cat([x[:, :1], self.registers.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
