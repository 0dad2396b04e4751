"""Products of activations and a kernel, which XLA computes well on CPUs too, as it does their gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import dot_general

from ved_flax import platforms


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., I) by kernel (I, O) to (..., O), where I may be several axes; only reverse-mode derivatives.

    JAX's own rule makes the kernel's gradient as (O, I), from transposed gradients of the output. On CPUs XLA writes
    these out separately, each time summing anew all that flows back along the residual stream: a third of a step.
    """
    # An exported program's batch is no number.
    single = kernel.ndim == 2 and all(isinstance(size, int) and size == 1 for size in x.shape[:-1])
    if single and (parts := parts_of(*kernel.shape)) > 1:
        return platforms.choose(x, kernel, cpu=partial(_in_parts, parts=parts), default=_product)
    return _product(x, kernel)


def parts_of(rows: int, columns: int) -> int:
    """Into how many parts a kernel's rows are cut for a single vector: 1 where it has more columns, or is small."""
    parts = 8 * min(rows // columns, 2)
    return parts if parts and rows >= 256 and rows % parts == 0 else 1


def _in_parts(x: jax.Array, kernel: jax.Array, parts: int) -> jax.Array:
    """One part is read after the other, each as it lies. XLA on CPU gives columns to its threads, so that they read
    short pieces of every row; the whole step of GPT-2 takes 1.4 times as long by it."""
    operands = x.reshape(parts, 1, -1), kernel.reshape(parts, -1, kernel.shape[1])
    dtype = jnp.result_type(*operands)
    # Narrow numbers are rounded once, as in one product.
    pieces = jnp.matmul(*operands, preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    return pieces.sum(axis=0).astype(dtype).reshape(*x.shape[:-1], -1)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    inner = kernel.ndim - 1
    return dot_general(x, kernel, ((tuple(range(x.ndim - inner, x.ndim)), tuple(range(inner))), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dense(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_x = dot_general(gradient, kernel, (((gradient.ndim - 1,), (kernel.ndim - 1,)), ((), ())))
    if _several_images(x) and kernel.ndim == 2 and kernel.shape[0] > kernel.shape[1]:
        return of_x, platforms.choose(x, gradient, cpu=_of_kernel_by_images, default=_of_kernel)
    return of_x, _of_kernel(x, gradient)


def _several_images(x: jax.Array) -> bool:
    """Of one device, and in float32, whose sums need no wider numbers."""
    several = x.ndim == 3 and isinstance(x.shape[0], int) and x.shape[0] > 1
    return several and x.dtype == jnp.float32 and platforms.devices_of(x) == 1


def _of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
    rows = tuple(range(gradient.ndim - 1))
    return dot_general(x, gradient, ((rows, rows), ((), ())))


def _of_kernel_by_images(x_BTI: jax.Array, gradient_BTO: jax.Array) -> jax.Array:
    """Nothing is computed again into a loop: at once, XLA on CPU makes a second, transposed copy of the activations,
    from what they were made of and as slowly as the product itself."""

    def add(image: jax.Array, of_kernel: jax.Array) -> jax.Array:
        return of_kernel + _of_kernel(x_BTI[image], gradient_BTO[image])

    shape = x_BTI.shape[2], gradient_BTO.shape[2]
    return jax.lax.fori_loop(0, len(x_BTI), add, jnp.zeros(shape, jnp.result_type(x_BTI, gradient_BTO)))


dense.defvjp(_forward, _backward)


FEW = range(2, 65)
"""Rows of which a CPU computes a product with a table faster as (V, rows)."""


def against(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Every vector's products with all rows of a table, (B, T, V) float32. The table is read as it lies: transposing it
    first takes XLA on CPU as long as several tokens."""

    def rows_first(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
        return jnp.einsum("btd,vd->btv", x_BTD, table_VD, preferred_element_type=jnp.float32)

    def table_first(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
        product = jnp.einsum("vd,btd->vbt", table_VD, x_BTD, preferred_element_type=jnp.float32)
        # Else XLA turns the product around, instead of its small result.
        return jax.lax.optimization_barrier(product).transpose(1, 2, 0)

    batch, tokens, _ = x_BTD.shape
    if not (isinstance(batch, int) and batch * tokens in FEW):
        return rows_first(x_BTD, table_VD)
    return platforms.choose(x_BTD, table_VD, cpu=table_first, default=rows_first)


@jax.custom_vjp
def row_sums(x: jax.Array) -> jax.Array:
    """Sums along the last axis, (...). Only reverse-mode derivatives."""
    return platforms.choose(x, tpu=_times_ones, default=partial(jnp.sum, axis=-1))


def _times_ones(x: jax.Array) -> jax.Array:
    """On a TPU the matrix units sum beside what the vector unit computes, which would do it after that; a single column
    of ones would be given to it."""
    ones = jnp.ones((x.shape[-1], 8), x.dtype)
    return jnp.einsum("...k,kn->...n", x, ones, precision="highest")[..., 0]


def _sums_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return row_sums(x), x


def _sums_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.broadcast_to(gradient[..., None], x.shape),)


row_sums.defvjp(_sums_forward, _sums_backward)


def dot(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`dense` as `nnx.Linear` calls its `dot_general`; with options that somebody set, JAX's own product."""
    if any(option is not None for option in options.values()):
        return dot_general(x, kernel, dimensions, **options)
    return dense(x, kernel)
