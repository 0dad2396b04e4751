"""What a checkpoint in an original layout tells of its model: names, shapes, and which tensors are the same."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from conversion.originals.rows import Shape
from ved_core.configs.fields import MOST_LAYERS
from ved_core.errors import CheckpointError

COMPARED_AT_ONCE = 1 << 24
"""Bytes of a tensor that are compared at a time: the whole may be as large as memory."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint's tensors by their bare names. `source` names the file in errors, `layout` the kind of model."""

    tensors: Mapping[str, np.ndarray]
    source: str
    layout: str

    def has(self, *prefixes: str) -> bool:
        """Whether any name begins with one of these."""
        return any(name.startswith(prefixes) for name in self.tensors)

    def count(self, prefix: str) -> int:
        """How many modules `prefix`0, `prefix`1 ... there are in a row, up to one more than a config allows."""
        inside = {name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)}
        return next((i for i in range(MOST_LAYERS + 1) if str(i) not in inside), MOST_LAYERS + 1)

    def shape(self, name: str, rank: int) -> Shape:
        """A tensor's shape. Raises CheckpointError where it is missing, empty, or has not `rank` axes."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.source}: {name} is missing, which {self.layout} has. Take a checkpoint that is whole"
            )
        shape = tuple(self.tensors[name].shape)
        if len(shape) != rank or not all(shape):
            raise self.unknown(f"{name} has shape {shape}, where {rank} axes were expected")
        return shape

    def square(self, name: str, entries: int) -> int:
        """The root of how many entries a table has. Raises CheckpointError where that is no whole number."""
        root = math.isqrt(max(entries, 0))
        if root < 1 or root * root != entries:
            raise self.unknown(f"the {entries} entries of {name} are no square")
        return root

    def unknown(self, what: str) -> CheckpointError:
        """The error for what no shape or name tells."""
        return CheckpointError(
            f"{self.source}: {what}, which no published {self.layout} has. Give the config of the model that it is"
        )


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two tensors of at least one axis are the same, bit for bit."""
    if first.dtype != second.dtype or tuple(first.shape) != tuple(second.shape):
        return False
    first, second = np.asarray(first), np.asarray(second)
    rows = max(1, COMPARED_AT_ONCE // max(1, first[:1].nbytes))
    starts = range(0, len(first), rows)
    return all(first[i : i + rows].tobytes() == second[i : i + rows].tobytes() for i in starts)
