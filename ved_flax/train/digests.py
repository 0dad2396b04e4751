"""Digests of arrays, computed where they lie: the same however an array is cut over devices.

Every number's bits are multiplied by an odd factor of its place and added up, modulo 2**32, twice. One number that
changes always changes both sums; many go unnoticed with a chance of 2**-64.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

SEEDS = (0x9E3779B9, 0x85EBCA6B)


def digests(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Name -> 16 hexadecimal digits. Zeros at the end of a flat array count for nothing."""
    found = {}
    for name, array in arrays.items():
        # One after another: many small programs with collectives at once can starve each other of threads on a CPU.
        found[name] = "".join(f"{int(value):08x}" for value in jax.device_get(_sums(array)))
    return found


@jax.jit
def _sums(array: jax.Array) -> list[jax.Array]:
    words = _words(array)
    place = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return [jnp.sum(words * (_mixed(place + jnp.uint32(seed)) | 1), dtype=jnp.uint32) for seed in SEEDS]


def _words(array: jax.Array) -> jax.Array:
    """The bits of every number as uint32; of wider numbers, along one more axis."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = array.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Scatters numbers that are close together: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
