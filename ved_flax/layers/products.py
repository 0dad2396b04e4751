"""Products of activations and a kernel, whose gradient XLA computes well on CPUs too."""

from typing import Any

import jax
from jax.lax import dot_general


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., I) by kernel (I, O) to (..., O), where I may be several axes; only reverse-mode derivatives.

    JAX's own rule makes the kernel's gradient as (O, I), from transposed gradients of the output. On CPUs XLA writes
    these out separately, each time summing anew all that flows back along the residual stream: a third of a step.
    """
    inner = kernel.ndim - 1
    return dot_general(x, kernel, ((tuple(range(x.ndim - inner, x.ndim)), tuple(range(inner))), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dense(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows = tuple(range(gradient.ndim - 1))
    of_x = dot_general(gradient, kernel, (((gradient.ndim - 1,), (kernel.ndim - 1,)), ((), ())))
    return of_x, dot_general(x, gradient, ((rows, rows), ((), ())))


dense.defvjp(_forward, _backward)


def dot(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`dense` as `nnx.Linear` calls its `dot_general`; with options that somebody set, JAX's own product."""
    if any(option is not None for option in options.values()):
        return dot_general(x, kernel, dimensions, **options)
    return dense(x, kernel)
