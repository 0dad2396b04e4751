"""Flax's msgpack files (`flax.serialization.to_bytes` of a tree of arrays), without Flax."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.formats import files
from conversion.formats.msgpack_tree import DTYPES, Reader
from conversion.formats.msgpack_tree import write as write_tree
from conversion.tensors import Lazy, Tensor
from ved_core.configs.base import shorten
from ved_core.errors import CheckpointError

STATE = frozenset({"params", "opt_state", "step"})
"""What a training state has at its top."""


def read(path: Path) -> dict[str, Tensor]:
    """The file's arrays as views of its memory map, under their paths ("encoder/layernorm/scale").

    Raises CheckpointError naming the file where it is missing, damaged, or holds something else than a tree of arrays.
    """
    data = files.map_file(path)
    try:
        tree = Reader(data).tree()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path}: not a whole Flax file ({error}); download or copy it again") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds one {type(tree).__name__}, not a model's parameters")
    if tree.keys() >= {"params"} and tree.keys() & (STATE - {"params"}):
        raise CheckpointError(
            f"{path}: holds a training state ({', '.join(sorted(tree))}); write its params alone: "
            "flax.serialization.to_bytes(state.params)"
        )
    if tree.keys() == {"params"} and isinstance(tree["params"], dict):  # a Flax module's variables
        tree = tree["params"]
    found: dict[str, Tensor] = {}
    for name, tensor in _leaves(tree, "", path):
        if name in found:
            raise CheckpointError(f"{path}: {name} is stored twice, as one name and as several")
        found[name] = tensor
    return found


def _leaves(tree: Mapping[str, Any], prefix: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/", path)
        elif isinstance(value, np.ndarray | Lazy):
            yield f"{prefix}{name}", value
        else:
            raise CheckpointError(f"{path}: {prefix}{name} is {shorten(value)}, where a model has arrays only")


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, one at a time, on disk when this returns. Raises OSError where the disk refuses."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        *parents, leaf = name.split("/")
        inside = tree
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[leaf] = tensor
    with files.written(path) as file:
        write_tree(file, tree)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The same for one of several files, in which Hugging Face's classes keep whole paths as names."""
    for name, tensor in tensors.items():
        _check(name, tensor)
    with files.written(path) as file:
        write_tree(file, tensors)


def _check(name: str, tensor: Tensor) -> None:
    if tensor.dtype.name not in DTYPES:
        raise CheckpointError(f"{name}: Flax's files have no dtype {tensor.dtype}")
