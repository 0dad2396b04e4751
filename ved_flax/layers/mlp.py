"""The feed-forward layer."""

import jax
from flax import nnx
from jax.nn.initializers import Initializer

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
        residual_init: Initializer | None = None,
    ) -> None:
        """`dropout`: on the hidden activations. `residual_init`: of the second layer, if not the builder's."""
        self.activation = ACTIVATIONS[activation]
        self.up = make.linear(width, hidden)
        self.dropout = make.dropout(dropout)
        self.down = make.initialised(residual_init).linear(hidden, width)

    def __call__(self, x_BTD: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        # Without the barrier, XLA for TPUs computes the activation again for each tile of the second product.
        hidden = jax.lax.optimization_barrier(self.activation(self.up(x_BTD)))
        return self.down(self.dropout(hidden, rngs=rngs))


class GatedMlp(nnx.Module):
    """down(activation(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: str, make: Builder) -> None:
        self.activation = ACTIVATIONS[activation]
        self.gate = make.linear(width, hidden)
        self.up = make.linear(width, hidden)
        self.down = make.linear(hidden, width)

    def __call__(self, x_BTD: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
