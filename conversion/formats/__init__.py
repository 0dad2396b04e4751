"""File formats: each module reads and writes a flat {name: array}, one tensor in memory at a time."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from conversion.formats import flax_msgpack, orbax, safetensors, tf_h5, torch_bin
from conversion.rules import Dialect
from conversion.tensors import Tensor

Write = Callable[[Path, Mapping[str, Tensor]], None]


@dataclasses.dataclass(frozen=True)
class Format:
    """One format. `weights`: what the file (Orbax: the folder) is called in a checkpoint folder; `dialect`: whose names
    and layouts it has, None for PyTorch's; `write_shard` is None where a checkpoint is always one."""

    name: str
    title: str
    weights: str
    dialect: Dialect | None
    read: Callable[[Path], dict[str, Tensor]]
    write: Write
    write_shard: Write | None

    @property
    def index(self) -> str:
        """The file that says which of several files has a tensor."""
        return f"{self.weights}.index.json"

    def shard(self, number: int, count: int) -> str:
        """The name of one of several files."""
        path = Path(self.weights)
        return f"{path.stem}-{number:05d}-of-{count:05d}{path.suffix}"

    def plain(self, name: str) -> str:
        """A stored name for comparison: TensorFlow's shards leave out its first part."""
        return name.partition("/")[2] if self.name == "tf" else name

    def owns(self, name: str) -> bool:
        """Whether a file or folder of this name in a checkpoint folder is this format's."""
        path = Path(self.weights)
        shard = name.startswith(f"{path.stem}-") and "-of-" in name and name.endswith(path.suffix)
        return name in (self.weights, self.index) or (self.write_shard is not None and shard)


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format(
            "safetensors",
            "safetensors",
            "model.safetensors",
            None,
            safetensors.read,
            safetensors.write,
            safetensors.write,
        ),
        Format("torch", "PyTorch", "pytorch_model.bin", None, torch_bin.read, torch_bin.write, torch_bin.write),
        Format(
            "flax",
            "Flax msgpack",
            "flax_model.msgpack",
            "hf_flax",
            flax_msgpack.read,
            flax_msgpack.write,
            flax_msgpack.write_shard,
        ),
        Format("tf", "TensorFlow h5", "tf_model.h5", "hf_tf", tf_h5.read, tf_h5.write, tf_h5.write_shard),
        Format("orbax", "Orbax", "orbax_model", None, orbax.read, orbax.write, None),
    )
}
"""In the order in which a folder that has several is read."""


def is_weights(name: str) -> bool:
    """Whether a file or folder of this name is a checkpoint's weights, or their index, in any format."""
    return any(each.owns(name) for each in FORMATS.values())
