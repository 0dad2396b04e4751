"""Tables of vectors that are looked up."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer


class Embedding(nnx.Embed):
    """An embedding of which one row, the padding's, is left alone by the gradient of a look-up (torch's padding_idx).
    A vocabulary head that shares the table trains that row all the same."""

    def __init__(self, entries: int, width: int, padding: int | None, **kwargs: Any) -> None:
        super().__init__(entries, width, **kwargs)
        self.padding = padding

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Vectors (..., D) of ids (...); NaN for what is no entry, where a negative one would count from the end."""
        vectors = super().__call__(jnp.where(inputs < 0, self.num_embeddings, inputs), out_sharding)
        if self.padding is None:
            return vectors
        return jnp.where((inputs == self.padding)[..., None], jax.lax.stop_gradient(vectors), vectors)


def zero_row(init: Initializer, row: int) -> Initializer:
    """`init` with one row of the table at 0."""

    def initialise(key: jax.Array, shape: Any, *args: Any, **kwargs: Any) -> jax.Array:
        return init(key, shape, *args, **kwargs).at[row].set(0)

    return initialise
