"""The decoder's memory between steps: an explicit value, never hidden state."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


class KeyValue(NamedTuple):
    """Keys and values of one attention, (B, N, S, H) each."""

    k: Tensor
    v: Tensor

    def first(self, positions: int) -> "KeyValue":
        """Views of the first positions."""
        return KeyValue(self.k[:, :, :positions], self.v[:, :, :positions])

    def by_heads(self) -> "KeyValue":
        """Each head's together in memory, as every step on a CPU reads them."""
        return KeyValue(self.k.contiguous(), self.v.contiguous())


@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoding step reads and returns.

    `self_kv`: per layer (B, N, L, H), filled up to `index`; `cross_kv`: per layer (B, N, P, H), made once per image;
    `mask_BL`: which of the filled positions may be attended to (False for padding in a prompt), None where all may;
    `index`: how many positions are filled.

    A step writes into the buffers of the cache that it is given, and returns one that shares them: do not continue
    twice from the same cache.
    """

    self_kv: tuple[KeyValue, ...]
    cross_kv: tuple[KeyValue, ...]
    mask_BL: Tensor | None
    index: int

    @property
    def batch(self) -> int:
        return self.self_kv[0].k.shape[0]

    @property
    def length(self) -> int:
        """L, the number of positions that fit."""
        return self.self_kv[0].k.shape[2]

    def get_seq_length(self) -> int:
        """`index` under the name of transformers' caches."""
        return self.index

    def reserve(self, length: int) -> "Cache":
        """A cache with room for at least `length` positions: itself, or a copy at least twice as long."""
        if length <= self.length:
            return self
        length = max(length, 2 * self.length)
        self_kv = tuple(KeyValue(_extended(k, length, 2), _extended(v, length, 2)) for k, v in self.self_kv)
        mask = None if self.mask_BL is None else _extended(self.mask_BL, length, 1)
        return dataclasses.replace(self, self_kv=self_kv, mask_BL=mask)

    def with_mask(self, mask_BT: Tensor | None, tokens: int) -> Tensor | None:
        """`mask_BL` with that of the next `tokens` written behind the filled positions; None where all may be seen."""
        if self.mask_BL is None and mask_BT is None:
            return None
        mask = self.mask_BL
        if mask is None:
            mask = torch.ones(self.batch, self.length, dtype=torch.bool, device=self.self_kv[0].k.device)
        mask[:, self.index : self.index + tokens] = True if mask_BT is None else mask_BT
        return mask


class Appended(Cache):
    """A cache of just the filled positions, behind which new ones come in a copy: nothing is written in place, as
    exported programs want it."""

    def reserve(self, length: int) -> "Cache":
        return self


def empty(cross_kv: tuple[KeyValue, ...], length: int) -> Cache:
    """A cache without tokens, of `length` positions, for the images behind `cross_kv`."""
    k = cross_kv[0].k
    batch, heads, _, head_width = k.shape
    self_kv = tuple(
        KeyValue(k.new_zeros(batch, heads, length, head_width), k.new_zeros(batch, heads, length, head_width))
        for _ in cross_kv
    )
    return Cache(self_kv, cross_kv, None, 0)


def write(memory: KeyValue, new: KeyValue, index: int) -> KeyValue:
    """`memory` (B, N, L, H) with `new` (B, N, T, H) at positions index .. index + T, written in place.

    Where gradients flow, a longer copy is made: they would be lost in a buffer. So it is where there is no room.
    """
    if memory.k.shape[2] == index or any(tensor.requires_grad for tensor in (*memory, *new)):
        k, v = (torch.cat([old[:, :, :index], x], dim=2) for old, x in zip(memory, new, strict=True))
        return KeyValue(k, v)
    for old, x in zip(memory, new, strict=True):
        old[:, :, index : index + x.shape[2]] = x
    return memory


def _extended(buffer: Tensor, length: int, axis: int) -> Tensor:
    """The buffer with zeros behind it, unless it is `length` long."""
    if buffer.shape[axis] >= length:
        return buffer
    shape = list(buffer.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([buffer, buffer.new_zeros(shape)], dim=axis)
