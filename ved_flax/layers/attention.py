"""Multi-head attention (arXiv:1706.03762): one `attend`, and the module around it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from ved_flax.layers.build import Builder
from ved_flax.layers.cache import KeyValue

MASKED = jnp.finfo(jnp.float32).min
"""Added to forbidden scores. Finite, so that a row that may attend to nothing gets a mean instead of NaN."""


def attend(
    q_BNTH: jax.Array,
    kv: KeyValue,
    bias: jax.Array | None,
    scale: float,
    *,
    dropout: nnx.Dropout,
    rngs: nnx.Rngs | None,
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T * scale + bias) v; scores and softmax in float32.

    `bias`: float32, broadcastable to (B, N, T, S), or None. Returns the output (B, N, T, H) and the weights
    (B, N, T, S) before dropout, both in q's dtype; unused weights are dropped by the compiler.
    """
    scores = jnp.einsum("bnth,bnsh->bnts", q_BNTH * scale, kv.k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BNTH.dtype)
    return jnp.einsum("bnts,bnsh->bnth", dropout(weights, rngs=rngs), kv.v), weights


class Attention(nnx.Module):
    """Projections to heads and back around `attend`; self-attention and cross-attention alike."""

    def __init__(
        self,
        width: int,
        heads: int,
        make: Builder,
        *,
        kv_width: int | None = None,
        qkv_bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        residual_init: Initializer | None = None,
    ) -> None:
        """`kv_width`: width of what is attended to, if not `width`. `scale`: of the scores, 1/sqrt(H) by default.
        `residual_init`: of the output projection, if not the builder's."""
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scale is None else scale
        self.q = make.linear(width, width, bias=qkv_bias)
        self.k = make.linear(kv_width or width, width, bias=qkv_bias)
        self.v = make.linear(kv_width or width, width, bias=qkv_bias)
        self.out = make.initialised(residual_init).linear(width, width)
        self.dropout = make.dropout(dropout)

    def split_heads(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, N * H) to (B, N, T, H)."""
        batch, tokens, width = x_BTD.shape
        return x_BTD.reshape(batch, tokens, self.heads, width // self.heads).transpose(0, 2, 1, 3)

    def keys_values(self, x_BSD: jax.Array) -> KeyValue:
        """Keys and values of what will be attended to."""
        return KeyValue(self.split_heads(self.k(x_BSD)), self.split_heads(self.v(x_BSD)))

    def __call__(
        self, x_BTD: jax.Array, kv: KeyValue, bias: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the output (B, T, D) and the attention weights (B, N, T, S)."""
        out_BNTH, weights = attend(
            self.split_heads(self.q(x_BTD)), kv, bias, self.scale, dropout=self.dropout, rngs=rngs
        )
        batch, _, tokens, _ = out_BNTH.shape
        return self.out(out_BNTH.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)), weights


def causal_bias(index: jax.Array | int, tokens: int, mask_BS: jax.Array) -> jax.Array:
    """Bias (B, 1, T, S) that lets token t of T, the first at position `index`, see unmasked positions up to its own."""
    positions_T1 = index + jnp.arange(tokens)[:, None]
    seen_TS = jnp.arange(mask_BS.shape[1])[None, :] <= positions_T1
    return jnp.where(seen_TS[None, None] & mask_BS[:, None, None, :], jnp.float32(0), MASKED)
