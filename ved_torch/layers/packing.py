"""`Packing`: weights in the order in which oneDNN reads them, kept from one call to the next."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ved_torch.layers.linear import reordered, suits


class Holder(Protocol):
    """A module that computes with `blocked` instead of its weight where it is not None."""

    blocked: Tensor | None


class Entry(NamedTuple):
    """A weight's second copy, and what the weight was like when it was made."""

    blocked: Tensor
    mark: tuple[int, int, float]


WORTH = 32
"""Steps of a single token that lose by weights as they lie what reordering all of them takes."""


class Packing:
    """Second copies of weights, made when first asked for and again where a weight has changed. They are no part of a
    module's state: neither pickled nor copied with it."""

    def __init__(self) -> None:
        self._entries: WeakKeyDictionary[Holder, Entry] = WeakKeyDictionary()
        self.patience = WORTH
        """Steps of a single token that are still taken without copies: who reads one image in a process of its own
        never needs them."""

    def __reduce__(self) -> tuple[type["Packing"], tuple[()]]:
        return Packing, ()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Give the memory back."""
        self._entries.clear()

    def renew(self, weights: Mapping[Holder, Tensor]) -> None:
        """Make the copies that are missing or out of date."""
        for holder, weight in weights.items():
            if weight.is_inference() or not suits(weight.detach(), weight):
                self._entries.pop(holder, None)
                continue
            # Changes through `.data` leave no trace but the values.
            mark = weight.data_ptr(), weight._version, weight.detach().sum().item()
            entry = self._entries.get(holder)
            if entry is None or entry.mark != mark:
                self._entries.pop(holder, None)
                self._entries[holder] = Entry(reordered(weight), mark)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Let every holder compute with its copy, for as long as no weight changes."""
        if torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            yield
            return
        entries = list(self._entries.items())
        for holder, entry in entries:
            holder.blocked = entry.blocked
        try:
            yield
        finally:
            for holder, _ in entries:
                holder.blocked = None
