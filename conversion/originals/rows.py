"""Rows of an original layout: which stored tensors of Hugging Face's layout one of its tensors becomes."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from conversion.tensors import Tensor

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One original tensor of `shape`, and what it is stored as; several names where it is fused (q, k, v in one), whose
    parts follow each other along its first axis."""

    original: str
    stored: tuple[str, ...]
    shape: Shape

    def parts(self, tensor: Tensor) -> Mapping[str, Tensor]:
        """Stored name -> tensor: itself, or views of it."""
        if len(self.stored) == 1:
            return {self.stored[0]: tensor}
        return dict(zip(self.stored, np.split(np.asarray(tensor), len(self.stored)), strict=True))


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A tensor that Hugging Face's model has no place for, or that its config determines; it may be there or not."""

    original: str


@dataclasses.dataclass(frozen=True)
class Copy:
    """A second copy of another tensor, which must equal it where it is there."""

    original: str
    of: str


AnyRow = Row | Dropped | Copy
Rows = Iterator[AnyRow]


def parameter(original: str, stored: str, shape: Shape) -> Rows:
    """A bare parameter."""
    yield Row(original, (stored,), shape)


def embedding(original: str, stored: str, shape: Shape) -> Rows:
    """An embedding table (entries, width)."""
    yield Row(f"{original}.weight", (f"{stored}.weight",), shape)


def norm(original: str, stored: str, width: int) -> Rows:
    """A layer normalisation's weight and bias."""
    yield Row(f"{original}.weight", (f"{stored}.weight",), (width,))
    yield Row(f"{original}.bias", (f"{stored}.bias",), (width,))


def linear(original: str, *stored: str, shape: Shape, bias: bool = True) -> Rows:
    """A linear map's or a convolution's weight (out, in, ...) and bias; several stored names where it is fused."""
    yield Row(f"{original}.weight", tuple(f"{name}.weight" for name in stored), shape)
    if bias:
        yield Row(f"{original}.bias", tuple(f"{name}.bias" for name in stored), shape[:1])


def dropped(*originals: str) -> Rows:
    """Weights and biases of modules that are left behind."""
    for original in originals:
        yield Dropped(f"{original}.weight")
        yield Dropped(f"{original}.bias")
