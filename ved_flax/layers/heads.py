"""Vectors to attention's heads and back."""

from functools import partial

import jax

from ved_flax import platforms

SQUARE = 64
"""Tokens, and as many numbers of a head, of which XLA makes better programs for TPUs by columns. With 32, 48, 96 or 128
tokens it is the other way round."""


def split_heads(x_BTD: jax.Array, heads: int) -> jax.Array:
    """(B, T, N * H) to (B, N, T, H). Windows may stand behind the batch."""
    if x_BTD.ndim == 3 and _square(x_BTD.shape[1], x_BTD.shape[2] // heads):
        return platforms.choose(x_BTD, tpu=partial(_split_columns, heads=heads), default=partial(_split, heads=heads))
    return _split(x_BTD, heads)


def join_heads(x_BNTH: jax.Array) -> jax.Array:
    """The inverse of `split_heads`."""
    if x_BNTH.ndim == 4 and _square(*x_BNTH.shape[2:]):
        return platforms.choose(x_BNTH, tpu=_join_columns, default=_join)
    return _join(x_BNTH)


def _square(tokens: int, width: int) -> bool:
    # An exported program's tokens may be no number.
    return isinstance(tokens, int) and tokens == width == SQUARE


def _split(x_BTD: jax.Array, heads: int) -> jax.Array:
    *batch, tokens, width = x_BTD.shape
    return x_BTD.reshape(*batch, tokens, heads, width // heads).swapaxes(-3, -2)


def _join(x_BNTH: jax.Array) -> jax.Array:
    *batch, heads, tokens, width = x_BNTH.shape
    return x_BNTH.swapaxes(-3, -2).reshape(*batch, tokens, heads * width)


def _split_columns(x_BTD: jax.Array, heads: int) -> jax.Array:
    """By way of (B, N * H, T), whose rows become heads without being moved. XLA does so by itself where it can tell
    tokens from numbers by how many they are; else it copies every head to the other order."""
    *batch, tokens, width = x_BTD.shape
    x_BDT = jax.lax.optimization_barrier(_back_in_rows(x_BTD).swapaxes(-2, -1))
    return x_BDT.reshape(*batch, heads, width // heads, tokens).swapaxes(-2, -1)


def _join_columns(x_BNTH: jax.Array) -> jax.Array:
    *batch, heads, tokens, width = x_BNTH.shape
    x_BDT = x_BNTH.swapaxes(-2, -1).reshape(*batch, heads * width, tokens)
    return jax.lax.optimization_barrier(x_BDT).swapaxes(-2, -1)


@jax.custom_vjp
def _back_in_rows(x: jax.Array) -> jax.Array:
    """x, whose gradient is turned around before anything reads it: biases would sum it along its columns."""
    return x


_back_in_rows.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))
