"""The feed-forward layer."""

import jax
from flax import nnx

from ved_flax.layers.activations import ACTIVATIONS
from ved_flax.layers.build import Builder


class Mlp(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        make: Builder,
        *,
        dropout: float = 0.0,
        down: nnx.Linear | None = None,
    ) -> None:
        """`dropout`: on the hidden activations."""
        self.activation = ACTIVATIONS[activation]
        self.up = make.linear(width, hidden)
        self.dropout = make.dropout(dropout)
        self.down = down or make.linear(hidden, width)

    def __call__(self, x_BTD: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.down(self.dropout(self.activation(self.up(x_BTD)), rngs=rngs))
