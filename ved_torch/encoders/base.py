"""`Encoder`: what all vision encoders share."""

import abc
from typing import Any

from torch import Tensor, nn

from ved_torch.outputs import EncoderOutput


class Encoder(nn.Module):
    """Image to tokens. `config`: the encoder's part of the model's configuration."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.config = cfg

    @abc.abstractmethod
    def forward(
        self,
        pixels_BCHW: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """(B, C, H, W) to (B, P, D). Raises ValueError for a size that does not fit."""
