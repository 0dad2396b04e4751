"""The decoder's memory between steps: an explicit value, never hidden state."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValue(NamedTuple):
    """Keys and values of one attention, (B, N, S, H) each."""

    k: jax.Array
    v: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoding step reads and returns.

    `self_kv`: per layer (B, N, L, H), filled up to `index` (see `without_batch`);
    `cross_kv`: per layer (B, N, P, H), made once per image;
    `mask_BL`: which of the filled positions may be attended to (False for padding in a prompt);
    `index`: int32 scalar, how many positions are filled.
    """

    self_kv: tuple[KeyValue, ...]
    cross_kv: tuple[KeyValue, ...]
    mask_BL: jax.Array
    index: jax.Array

    @property
    def length(self) -> int:
        """L, the number of positions that fit."""
        return self.mask_BL.shape[1]


def empty(cross_kv: tuple[KeyValue, ...], length: int) -> Cache:
    """A cache without tokens, of `length` positions, for the images behind `cross_kv`."""
    k = cross_kv[0].k
    batch, heads, _, head_width = k.shape
    zeros = [jnp.zeros((batch, heads, length, head_width), k.dtype) for _ in range(2 * len(cross_kv))]
    pairs = zip(zeros[::2], zeros[1::2], strict=True)
    self_kv = tuple(KeyValue(k, v) for k, v in pairs)
    return Cache(self_kv, cross_kv, jnp.zeros((batch, length), bool), jnp.zeros((), jnp.int32))


def write(memory: KeyValue, new: KeyValue, index: jax.Array, tokens: int | None = None) -> KeyValue:
    """`memory` (B, N, L, H) or (N, L, H) with `new` (B, N, T, H), or its first `tokens`, at index .. index + T."""
    added = (x[:, :, :tokens].reshape(*old.shape[:-2], -1, old.shape[-1]) for old, x in zip(memory, new, strict=True))
    update = jax.lax.dynamic_update_slice_in_dim
    return KeyValue(*(update(old, x, index, axis=old.ndim - 2) for old, x in zip(memory, added, strict=True)))


def read(memory: KeyValue) -> KeyValue:
    """Keys and values (B, N, L, H) to attend to."""
    return jax.tree.map(lambda x: x[None] if x.ndim == 3 else x, memory)


def without_batch(cache: Cache) -> Cache:
    """Self-attention's part of a batch of one as (N, L, H), which is what a loop should carry. XLA drops the axis from
    products; on CPU it would write the cache once with it and once without, and copy it to do so."""
    drop = cache.mask_BL.shape[0] == 1
    return dataclasses.replace(cache, self_kv=jax.tree.map(lambda x: x[0] if drop else x, cache.self_kv))


def with_batch(cache: Cache) -> Cache:
    """Undoes `without_batch`."""
    return dataclasses.replace(cache, self_kv=tuple(map(read, cache.self_kv)))
