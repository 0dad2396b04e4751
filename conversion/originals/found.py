"""What a checkpoint in an original layout tells of its model: names, shapes, and which tensors are the same."""

import dataclasses
import math
from collections.abc import Mapping

from conversion.originals.rows import Shape
from conversion.tensors import Tensor
from ved_core.configs.fields import MOST_LAYERS
from ved_core.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint's tensors by their bare names. `source` names the file in errors, `layout` the kind of model."""

    tensors: Mapping[str, Tensor]
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
