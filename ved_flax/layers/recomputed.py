"""Attention in bfloat16 whose backward pass computes the scores again, where XLA by itself keeps them in float32.

By a TPU's compiler, passes over the scores that are no part of a matrix product cost more than the products. It makes
one pass of a product, softmax's maximum, exponentials and their sum, if nothing else asks for any of these but the
exponentials in bfloat16: so nothing else of it is kept for the backward pass, and of many scores nothing, so that it
begins with the same pass. Softmax is divided by its sums where vectors are multiplied, and what its gradient needs of a
whole row is a row sum of the output (arXiv:2205.14135, appendix B).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ved_flax.layers.cache import KeyValue
from ved_flax.layers.products import row_sums
from ved_flax.platforms import devices_of

Kept = tuple[Any, ...]
LEAST = 65
"""Queries of an image from which on it is worth it: scores of fewer are no larger than vectors."""
LEAST_IN_WINDOWS = 32
KEPT = 2**25
"""Scores of a device up to which their exponentials are kept for the backward pass: 64 MB of each layer."""
FEW = 2**24
"""An image's scores in windows up to which plain softmax, which divides them before the product, is faster where
nothing is kept."""


def fits(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None) -> bool:
    """bfloat16, some queries, and as many batches of keys."""
    least = LEAST_IN_WINDOWS if q_BNTH.ndim > 4 else LEAST
    return q_BNTH.dtype == jnp.bfloat16 and q_BNTH.shape[-2] >= least and q_BNTH.shape[:-2] == kv.k.shape[:-2]


def recomputed(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None, scale: float) -> jax.Array:
    """softmax(q k^T * scale + bias) v, (B, N, T, H); scores in float32, exponentials rounded to bfloat16."""
    return _attend(q_BNTH * scale, kv.k, kv.v, None if bias is None else bias.swapaxes(-2, -1))


def _scores(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> jax.Array:
    """(B, N, S, T): a TPU reduces the last axis but one with less work than the last."""
    scores = jnp.einsum("...nsh,...nth->...nst", k, q, preferred_element_type=jnp.float32)
    return scores if bias is None else scores + bias


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> jax.Array:
    if q.ndim > 4 and math.prod(q.shape[1:-1]) * k.shape[-2] <= FEW:
        weights = jax.nn.softmax(_scores(q, k, bias), axis=-2).astype(q.dtype)
        return jnp.einsum("...nst,...nsh->...nth", weights, v)
    return _weighted(*_powers(q, k, bias), v)


def _powers(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Exponentials of the scores, (B, N, S, T) in q's dtype, and one over each query's sum of them, (B, N, T, 1)."""
    scores = _scores(q, k, bias)
    powers = jnp.exp(scores - scores.max(axis=-2, keepdims=True))
    return powers.astype(q.dtype), 1 / powers.sum(axis=-2)[..., None]


def _weighted(powers: jax.Array, share: jax.Array, v: jax.Array) -> jax.Array:
    sums = jnp.einsum("...nst,...nsh->...nth", powers, v, preferred_element_type=jnp.float32)
    # Else XLA keeps the output as it was before it was rounded, in twice the memory.
    return jax.lax.optimization_barrier((sums * share).astype(v.dtype))


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Kept]:
    powers, share = _powers(q, k, bias)
    keep = math.prod(powers.shape) <= KEPT * devices_of(q)
    if keep:
        powers = jax.lax.optimization_barrier(powers)
    out = _weighted(powers, share, v)
    return out, (q, k, v, bias, out, (powers, share) if keep else None)


def _backward(kept: Kept, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, bias, out, made = kept
    if made is None:
        # Else XLA finds that the forward pass has these scores, and keeps them.
        q, gradient = jax.lax.optimization_barrier((q, gradient))
        powers, share = _powers(q, k, bias)
        # What three products read is written once, and not computed again for each.
        made = jax.lax.optimization_barrier(powers), share
    powers, share = made
    wide = gradient.astype(jnp.float32)
    own = row_sums(wide * out)[..., None, :] * share.swapaxes(-2, -1)
    shared = (wide * share).astype(q.dtype)
    of_weights = jnp.einsum("...nsh,...nth->...nst", v, shared, preferred_element_type=jnp.float32)
    of_scores = powers.astype(jnp.float32) * (of_weights - own)
    narrow = jax.lax.optimization_barrier(of_scores.astype(q.dtype))
    return (
        jnp.einsum("...nst,...nsh->...nth", narrow, k),
        jnp.einsum("...nst,...nth->...nsh", narrow, q),
        jnp.einsum("...nst,...nth->...nsh", powers, shared),
        None if bias is None else _summed(of_scores, bias),
    )


def _summed(x: jax.Array, bias: jax.Array) -> jax.Array:
    """The gradient of what was broadcast to x."""
    shape = (1,) * (x.ndim - bias.ndim) + bias.shape
    axes = [axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] > 1]
    return x.sum(axis=axes, keepdims=True).reshape(bias.shape).astype(bias.dtype)


_attend.defvjp(_forward, _backward)
