"""`Builder`: makes leaf modules that share one initialisation and one pair of dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, normal, zeros

from ved_flax.layers import products
from ved_flax.layers.embedding import Embedding, zero_row


@dataclasses.dataclass(frozen=True)
class Builder:
    """`dtype`: what layers compute in; `param_dtype`: what parameters are kept in."""

    rngs: nnx.Rngs
    init: Initializer = normal(0.02)
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    param_dtype: jnp.dtype = jnp.dtype(jnp.float32)

    def initialised(self, init: Initializer | None) -> "Builder":
        """The same builder with another initialisation of kernels and embeddings, if one is given."""
        return self if init is None else dataclasses.replace(self, init=init)

    def linear(self, width_in: int, width_out: int, *, bias: bool = True) -> nnx.Linear:
        """x @ kernel (in, out) + bias; zero bias."""
        return nnx.Linear(
            width_in,
            width_out,
            use_bias=bias,
            kernel_init=self.init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=products.dot,
            rngs=self.rngs,
        )

    def norm(self, width: int, epsilon: float) -> nnx.LayerNorm:
        """Layer normalisation with statistics in float32: torch's two-pass variance, or, of bfloat16 numbers, the mean
        square less the squared mean, which errs by less than their own rounding does and saves a pass over them."""
        return nnx.LayerNorm(
            width,
            epsilon=epsilon,
            use_fast_variance=self.dtype == jnp.bfloat16,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def embedding(self, entries: int, width: int, *, padding: int | None = None) -> Embedding:
        """A table (entries, width); row `padding` begins as zeros and learns nothing from being looked up."""
        return Embedding(
            entries,
            width,
            padding,
            embedding_init=self.init if padding is None else zero_row(self.init, padding),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def parameter(self, *shape: int, init: Initializer = zeros) -> nnx.Param[jax.Array]:
        """A bare parameter."""
        return nnx.Param(init(self.rngs.params(), shape, self.param_dtype))

    def dropout(self, rate: float) -> nnx.Dropout:
        """Inactive until `model.train()`; its random keys come at call time."""
        return nnx.Dropout(rate, deterministic=True)

    def drop_path(self, rate: float) -> nnx.Dropout:
        """Stochastic depth (arXiv:1603.09382): drops (B, P, D) for whole images, as `dropout` drops numbers."""
        return nnx.Dropout(rate, broadcast_dims=(1, 2), deterministic=True)
