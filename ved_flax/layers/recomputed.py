"""Attention in bfloat16 whose backward pass computes the scores again, where XLA by itself keeps them in float32.

By a TPU's compiler, passes over the scores that are no part of a matrix product cost more than the products. So softmax
is divided by its sums behind the product with the values, and what its gradient needs of a whole row is a row sum of
the output (arXiv:2205.14135, appendix B).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ved_flax.layers.cache import KeyValue

Kept = tuple[Any, ...]
LEAST = 32
"""Queries of an image from which on it is worth it."""


def fits(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None) -> bool:
    """bfloat16, some queries, and as many batches of keys."""
    return q_BNTH.dtype == jnp.bfloat16 and q_BNTH.shape[-2] >= LEAST and q_BNTH.shape[:-2] == kv.k.shape[:-2]


def recomputed(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None, scale: float) -> jax.Array:
    """softmax(q k^T * scale + bias) v, (B, N, T, H); scores in float32, exponentials rounded to bfloat16."""
    return _attend(q_BNTH * scale, kv.k, kv.v, None if bias is None else bias.swapaxes(-2, -1))


def _scores(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> jax.Array:
    """(B, N, S, T): a TPU reduces the last axis but one with less work than the last."""
    scores = jnp.einsum("...nsh,...nth->...nst", k, q, preferred_element_type=jnp.float32)
    return scores if bias is None else scores + bias


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> jax.Array:
    return _forward(q, k, v, bias)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Kept]:
    """The output, and what the backward pass needs: with the arguments and the output in float32, each query's largest
    score and one over its sum of exponentials, (B, N, 1, T)."""
    scores = _scores(q, k, bias)
    largest = scores.max(axis=-2, keepdims=True)
    powers = jnp.exp(scores - largest)
    share = 1 / powers.sum(axis=-2, keepdims=True)
    sums = jnp.einsum("...nst,...nsh->...nth", powers.astype(q.dtype), v, preferred_element_type=jnp.float32)
    out = sums * share.swapaxes(-2, -1)
    return out.astype(q.dtype), (q, k, v, bias, out, largest, share)


def _backward(kept: Kept, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, bias, out, largest, share = kept
    # Else XLA finds that the forward pass has these scores, and keeps them.
    q, largest, gradient = jax.lax.optimization_barrier((q, largest, gradient))
    own = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)[..., None, :]
    # Both are written once, and not computed again for each product that reads them.
    weights = (jnp.exp(_scores(q, k, bias) - largest) * share).astype(q.dtype)
    weights = jax.lax.optimization_barrier(weights)
    of_weights = jnp.einsum("...nsh,...nth->...nst", v, gradient, preferred_element_type=jnp.float32)
    of_scores = weights.astype(jnp.float32) * (of_weights - own)
    narrow = jax.lax.optimization_barrier(of_scores.astype(q.dtype))
    return (
        jnp.einsum("...nst,...nsh->...nth", narrow, k),
        jnp.einsum("...nst,...nth->...nsh", narrow, q),
        jnp.einsum("...nst,...nth->...nsh", weights, gradient),
        None if bias is None else _summed(of_scores, bias),
    )


def _summed(x: jax.Array, bias: jax.Array) -> jax.Array:
    """The gradient of what was broadcast to x."""
    shape = (1,) * (x.ndim - bias.ndim) + bias.shape
    axes = [axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] > 1]
    return x.sum(axis=axes, keepdims=True).reshape(bias.shape).astype(bias.dtype)


_attend.defvjp(_forward, _backward)
