"""Orbax checkpoints: a folder of a tree of arrays, as `orbax.checkpoint.PyTreeCheckpointer` keeps it.

The tree is {"parameters": ..., "carried": {stored name: array}}, its parameters those of our Flax modules, nested by
their dotted names: `nnx.restore_int_paths(PyTreeCheckpointer().restore(folder)["parameters"])` is what the functions of
`ved_flax.compiled` take. Arrays are read by TensorStore, Orbax's own engine, one at a time.
"""

import errno
import functools
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conversion.formats import files
from conversion.tensors import FLOATS, Lazy, Tensor
from ved_core import json_text
from ved_core.errors import CheckpointError

MISSING = "Orbax checkpoints need orbax-checkpoint: pip install orbax-checkpoint"
MARKS = ("_METADATA", "_CHECKPOINT_METADATA")
PARAMETERS, CARRIED = "parameters", "carried"
PIECE = 16 * 2**20
"""Bytes of an array that are stored, and read, as one."""
AT_ONCE = 64 * 2**20
"""Bytes that are written together in any case."""
PACKED = 8
"""How many times smaller packed numbers may be than they are, beyond AT_ONCE: weights hardly shrink."""
MOST = 20_000
"""How many arrays a tree may have."""
MOST_VALUES = 2**19
DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, OverflowError, MemoryError),
)
"""What TensorStore raises of damaged arrays, by itself or as a subclass of RuntimeError."""


def is_checkpoint(folder: Path) -> bool:
    """Whether Orbax wrote this folder."""
    return folder.is_dir() and any((folder / mark).is_file() for mark in MARKS)


def library() -> Any:
    """orbax.checkpoint, which imports JAX. Raises CheckpointError where it is not installed."""
    try:
        import orbax.checkpoint
    except ImportError:
        raise CheckpointError(MISSING) from None
    return orbax.checkpoint


def _tensorstore() -> Any:
    """TensorStore, which comes with Orbax; reading needs no more. Raises CheckpointError where it is not installed."""
    try:
        import tensorstore
    except ImportError:
        raise CheckpointError(MISSING) from None
    return tensorstore


def read(folder: Path) -> dict[str, Tensor]:
    """The folder's arrays, each read when it is used, under their paths ("parameters/encoder/norm/scale").

    Raises CheckpointError naming the folder where it is incomplete, damaged, or holds something else than arrays.
    """
    _tensorstore()
    try:
        described = json_text.read(folder / MARKS[0], MOST_VALUES)
        entries = described["tree_metadata"].values()
        paths = [tuple(str(key["key"]) for key in entry["key_metadata"]) for entry in entries]
        zarr3, ocdbt = bool(described.get("use_zarr3")), (folder / "manifest.ocdbt").is_file()
        _check_paths(paths)
        return dict(_opened(folder, paths, "zarr3" if zarr3 else "zarr", ocdbt))
    except DAMAGED as error:
        raise CheckpointError(f"{folder}: not a whole Orbax checkpoint ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check_paths(paths: Sequence[tuple[str, ...]]) -> None:
    """Raise ValueError where arrays would be looked for outside the folder, or are too many."""
    if len(paths) > MOST:
        raise ValueError(f"more than {MOST} arrays")
    if len({".".join(path) for path in paths}) < len(paths):
        raise ValueError("two arrays of one name")
    for path in paths:
        name = ".".join(path)
        if not path or re.search(r"[/\\\0]", name) or set(name) <= {"."}:
            raise ValueError(f"an array called {name!r}")


def _opened(folder: Path, paths: Sequence[tuple[str, ...]], driver: str, ocdbt: bool) -> Iterator[tuple[str, Tensor]]:
    tensorstore = _tensorstore()
    inside = [path for path in folder.rglob("*") if not path.is_dir()]
    if others := [path.name for path in inside if not path.is_file()]:  # a pipe would be waited for
        raise ValueError(f"{others[0]} is no regular file")
    largest = AT_ONCE + PACKED * sum(file.stat().st_size for file in inside)
    # A few pieces at a time: each is in memory twice while it is decoded.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_concurrency": {"limit": 2}})
    base = f"file://{folder.resolve()}/"
    stores = []
    for path in paths:
        name = ".".join(path)
        store: dict[str, Any] = {"driver": "file", "path": f"{folder.resolve() / name}/"}
        if ocdbt:
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        # Without its file a part of an array would be read as zeros.
        spec = {"driver": driver, "kvstore": store, "fill_missing_data_reads": False}
        stores.append(tensorstore.open(spec, open=True, read=True, context=context))
    for path, opening in zip(paths, stores, strict=True):
        array = opening.result()
        kind, shape = np.dtype(array.dtype.numpy_dtype), tuple(array.shape)
        if kind not in FLOATS and kind.kind not in "biu":
            raise ValueError(f"{'/'.join(path)} is of dtype {kind}")
        if math.prod(shape) * kind.itemsize > largest:
            raise ValueError(f"{'/'.join(path)} has the shape {shape} and not its numbers")
        yield "/".join(path), Lazy(shape, kind, _reading(array, folder))


def _reading(array: Any, folder: Path) -> Callable[[], np.ndarray]:
    before = files.identity(folder)

    def make() -> np.ndarray:
        files.check_identity(folder, before)
        try:
            return array.read().result()
        except DAMAGED as error:
            raise CheckpointError(f"{folder}: cannot be read whole ({_reason(error)})") from None

    return make


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors under their paths, a tenth of them in memory at a time. Raises OSError where the disk refuses."""
    ocp = library()
    import jax

    tree: dict[str, Any] = {PARAMETERS: {}}
    for name, tensor in tensors.items():
        *parents, leaf = name.split("/")
        inside = tree
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[leaf] = Lazy(tensor.shape, tensor.dtype, functools.partial(_in_order, tensor))

    total = sum(tensor.nbytes for tensor in tensors.values())
    if shutil.disk_usage(folder.parent).free < total:  # before Orbax's threads find out, each by itself
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    limit = max(AT_ONCE, total // 10)

    class InGroups(ocp.type_handlers.NumpyHandler):  # type: ignore[name-defined]
        """Writes some tensors before the next ones are made: each by itself would be a file of its own."""

        async def serialize(self, values: Sequence[Lazy], infos: Sequence[Any], args: Any = None) -> list[Any]:
            for group in _groups(values, limit):
                made = [np.asarray(values[i]) for i in group]
                some = [infos[i] for i in group], args and [args[i] for i in group]
                for written in await super().serialize(made, *some):
                    written.result()
            return []

    registry = ocp.type_handlers.create_type_handler_registry(
        (Lazy, InGroups(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns of a registry without
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), tree)
        try:
            checkpointer.save(folder.resolve(), ocp.args.PyTreeSave(tree, save_args=pieces))
        except BaseException as error:
            _settle(folder.parent)
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None or not isinstance(error, ValueError | RuntimeError):
                raise
            # TensorStore's, which has the system's error in its text.
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None


def _settle(folder: Path) -> None:
    """Wait until the threads that a failure leaves behind write no more into a folder, and 10 s at most."""
    before, calm = None, 0
    for _ in range(100):
        now = sorted(map(str, folder.rglob("*")))
        calm = calm + 1 if now == before else 0
        if calm == 3:
            return
        before = now
        time.sleep(0.1)


def _in_order(tensor: Tensor) -> np.ndarray:
    """The tensor in C order: itself where it is."""
    return np.asarray(np.asarray(tensor), order="C")


def _groups(values: Sequence[Lazy], limit: int) -> Iterator[list[int]]:
    """Which values go together: at most `limit` bytes, or one."""
    group: list[int] = []
    filled = 0
    for i, value in enumerate(values):
        if group and filled + value.nbytes > limit:
            yield group
            group, filled = [], 0
        group.append(i)
        filled += value.nbytes
    if group:
        yield group
