"""`Encoder`: what all vision encoders share."""

import abc

import jax
from flax import nnx

from ved_flax.half import Half
from ved_flax.outputs import EncoderOutput


class Encoder(Half):
    """Image to tokens."""

    @abc.abstractmethod
    def __call__(
        self,
        pixels_BCHW: jax.Array,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> EncoderOutput:
        """(B, C, H, W) to (B, P, D). Raises InputError for a size that does not fit."""

    @abc.abstractmethod
    def check_size(self, height: int, width: int, interpolate_pos_encoding: bool) -> None:
        """Raise InputError for images that the checkpoint's positions do not cover, or that fill no patch."""
