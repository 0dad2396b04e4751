"""`Encoder`: what all vision encoders share."""

import abc
from typing import Any

import jax
from flax import nnx

from ved_flax.layers.held import Held
from ved_flax.outputs import EncoderOutput


class Encoder(nnx.Module):
    """Image to tokens."""

    def __init__(self, cfg: Any) -> None:
        self.held = Held(cfg)

    @property
    def config(self) -> Any:
        """The encoder's part of the model's configuration."""
        return self.held.value

    @config.setter
    def config(self, value: Any) -> None:
        self.held.value = value

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
        """(B, C, H, W) to (B, P, D). Raises ValueError for a size that does not fit."""
