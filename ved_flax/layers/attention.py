"""Multi-head attention (arXiv:1706.03762): one `attend`, and the module around it."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, constant

from ved_flax.layers import kernels, recomputed
from ved_flax.layers.build import Builder
from ved_flax.layers.cache import KeyValue
from ved_flax.layers.heads import join_heads, split_heads

MASKED = jnp.finfo(jnp.float32).min
"""Added to forbidden scores. Finite, so that a row that may attend to nothing gets a mean instead of NaN."""


def attend(
    q_BNTH: jax.Array,
    kv: KeyValue,
    bias: jax.Array | None,
    scale: float,
    *,
    implementation: str = "xla",
    dropout: nnx.Dropout,
    rngs: nnx.Rngs | None,
    need_weights: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """softmax(q k^T * scale + bias) v; scores and softmax in float32.

    `implementation`: see `kernels.choose`; dropout and weights are had of XLA's plain operations only.
    `bias`: float32, broadcastable to (B, N, T, S), or None. Returns the output (B, N, T, H) and, if wanted, the weights
    (B, N, T, S) before dropout, both in q's dtype. Windows may stand behind the batch, in all arrays alike.
    """
    if not need_weights and (dropout.deterministic or dropout.rate == 0):
        chosen = kernels.choose(implementation, q_BNTH, kv, bias)
        if chosen != "xla":
            return kernels.KERNELS[chosen](q_BNTH, kv, bias, scale), None
        if recomputed.fits(q_BNTH, kv, bias):
            return recomputed.recomputed(q_BNTH, kv, bias, scale), None
    scores = jnp.einsum("...nth,...nsh->...nts", q_BNTH * scale, kv.k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BNTH.dtype)
    return jnp.einsum("...nts,...nsh->...nth", dropout(weights, rngs=rngs), kv.v), weights if need_weights else None


class Attention(nnx.Module):
    """Projections to heads and back around `attend`; self-attention and cross-attention alike."""

    implementation: str = "auto"
    """One of `kernels.IMPLEMENTATIONS`."""

    def __init__(
        self,
        width: int,
        heads: int,
        make: Builder,
        *,
        kv_width: int | None = None,
        qkv_bias: bool = True,
        k_bias: bool | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        residual_init: Initializer | None = None,
    ) -> None:
        """`kv_width`: width of what is attended to, if not `width`. `k_bias`: whether keys have a bias, if not as
        queries and values. `scale`: of the scores, 1/sqrt(H) by default. `residual_init`: of the output projection, if
        not the builder's."""
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scale is None else scale
        self.q = make.linear(width, width, bias=qkv_bias)
        self.k = make.linear(kv_width or width, width, bias=qkv_bias if k_bias is None else k_bias)
        self.v = make.linear(kv_width or width, width, bias=qkv_bias)
        self.out = make.initialised(residual_init).linear(width, width)
        self.dropout = make.dropout(dropout)

    def queries(self, x_BTD: jax.Array) -> jax.Array:
        """What attends."""
        return split_heads(self.q(x_BTD), self.heads)

    def keys_values(self, x_BSD: jax.Array) -> KeyValue:
        """Keys and values of what will be attended to."""
        return KeyValue(split_heads(self.k(x_BSD), self.heads), split_heads(self.v(x_BSD), self.heads))

    def __call__(
        self,
        x_BTD: jax.Array,
        kv: KeyValue,
        bias: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
        *,
        need_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the output (B, T, D) and, if wanted, the attention weights (B, N, T, S)."""
        out_BNTH, weights = attend(
            self.queries(x_BTD),
            kv,
            bias,
            self.scale,
            implementation=self.implementation,
            dropout=self.dropout,
            rngs=rngs,
            need_weights=need_weights,
        )
        return self.out(join_heads(out_BNTH)), weights


class CosineAttention(Attention):
    """Scores are cosines times each head's learned factor, at most 100 (arXiv:2111.09883, 3.2). Keys have no bias."""

    def __init__(self, width: int, heads: int, make: Builder, *, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__(width, heads, make, qkv_bias=qkv_bias, k_bias=False, scale=1.0, dropout=dropout)
        self.logit_scale = make.parameter(heads, 1, 1, init=constant(math.log(10)))

    def queries(self, x_BTD: jax.Array) -> jax.Array:
        """Unit vectors, times their head's factor."""
        factor_N11 = jnp.exp(jnp.minimum(self.logit_scale[...].astype(jnp.float32), math.log(100)))
        q_BNTH = super().queries(x_BTD)
        return (unit(q_BNTH) * factor_N11).astype(q_BNTH.dtype)

    def keys_values(self, x_BSD: jax.Array) -> KeyValue:
        k, v = super().keys_values(x_BSD)
        return KeyValue(unit(k).astype(k.dtype), v)


def set_implementation(module: nnx.Module, name: str) -> None:
    """How every attention inside `module` computes. Raises ValueError for a name that is none."""
    if name not in kernels.IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation = {name!r} should be one of {', '.join(kernels.IMPLEMENTATIONS)}")
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Attention):
            part.implementation = name


def unit(x: jax.Array) -> jax.Array:
    """Vectors along the last axis scaled to length 1, in float32; zero stays zero, with zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def causal_bias(index: jax.Array | int, tokens: int, mask_BS: jax.Array) -> jax.Array:
    """Bias (B, 1, T, S) that lets token t of T, the first at position `index`, see unmasked positions up to its own."""
    positions_T1 = index + jnp.arange(tokens)[:, None]
    seen_TS = jnp.arange(mask_BS.shape[1])[None, :] <= positions_T1
    return visible_bias(seen_TS[None] & mask_BS[:, None, :])


def visible_bias(visible_BTS: jax.Array) -> jax.Array:
    """Bias (B, 1, T, S) that hides what is not visible."""
    return jnp.where(visible_BTS[:, None], jnp.float32(0), MASKED)
