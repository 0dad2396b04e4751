"""The feed-forward layer."""

import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.nn.initializers import Initializer

from ved_flax.layers.activations import ACTIVATIONS
from ved_flax.layers.build import Builder
from ved_flax.layers.slicing import in_slices, large
from ved_flax.platforms import choose


@jax.custom_jvp
def computed_once(x: jax.Array) -> jax.Array:
    """x, which XLA for TPUs would else compute again for each tile of a product that reads it. Not so in training,
    where two products read it, and keeping it besides what it is made of costs more."""
    return jax.lax.optimization_barrier(x)


@computed_once.defjvp
def _computed_once_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[0]


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
        def run(x: jax.Array) -> jax.Array:
            return self.down(self.dropout(computed_once(self.activation(self.up(x))), rngs=rngs))

        return by_rows(run, x_BTD, self.up.out_features)


class GatedMlp(nnx.Module):
    """down(activation(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: str, make: Builder) -> None:
        self.activation = ACTIVATIONS[activation]
        self.gate = make.linear(width, hidden)
        self.up = make.linear(width, hidden)
        self.down = make.linear(hidden, width)

    def __call__(self, x_BTD: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        def run(x: jax.Array) -> jax.Array:
            return self.down(self.activation(self.gate(x)) * self.up(x))

        return by_rows(run, x_BTD, self.up.out_features)


def by_rows(run: Callable[[jax.Array], jax.Array], x: jax.Array, hidden: int) -> jax.Array:
    """run(x), the `hidden` activations of many rows slice by slice."""
    if not large(math.prod(x.shape[:-1]), hidden):
        return run(x)

    def sliced(x: jax.Array) -> jax.Array:
        return in_slices(run, hidden, x.reshape(-1, x.shape[-1])).reshape(x.shape)

    return choose(x, cpu=sliced, default=run)
