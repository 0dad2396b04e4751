"""`Encoder`: what all vision encoders share."""

import abc

from torch import Tensor

from ved_torch.half import Half
from ved_torch.outputs import EncoderOutput


class Encoder(Half):
    """Image to tokens."""

    @abc.abstractmethod
    def forward(
        self,
        pixels_BCHW: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """(B, C, H, W) to (B, P, D). Raises InputError for a size that does not fit."""

    @abc.abstractmethod
    def check_size(self, height: int, width: int, interpolate_pos_encoding: bool) -> None:
        """Raise InputError for images that the checkpoint's positions do not cover, or that fill no patch."""
