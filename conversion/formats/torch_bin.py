"""PyTorch's files (torch.save of a state dict), without PyTorch: zip archives, and the pickles of before 1.6."""

import io
import math
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.formats import files
from conversion.formats.torch_pickle import STORAGES, Storage, Stored, dump, load, names
from conversion.tensors import Tensor, contiguous
from ved_core.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C
"""What a file of before PyTorch 1.6 begins with."""
ALIGNMENT = 64
"""Of storages in a zip archive, in bytes."""
STATES = ("model", "state_dict", "model_state_dict", "module")
"""Where training scripts keep the model's state dict in theirs."""
LARGEST_PICKLE = 64 * 2**20
LARGEST_DIRECTORY = 4 * 2**20
"""Bytes of a zip archive's list of members, about 100 for each tensor."""
MOST_VALUES = 2**19
"""How many values a nested state may have: shared ones count each time, as they are walked through each time."""
DAMAGED = (
    *(pickle.UnpicklingError, ValueError, KeyError, TypeError, IndexError, EOFError, AttributeError),
    *(struct.error, OverflowError, MemoryError, zipfile.BadZipFile, RuntimeError, OSError),
)

Numbers = Callable[[Storage], np.ndarray]
"""A storage's numbers, as a view of the file."""


def read(path: Path) -> dict[str, Tensor]:
    """A state dict's tensors as read-only views of the mapped file.

    Raises CheckpointError naming the file where it is missing or damaged, holds something else than tensors, or names
    anything beyond what tensors need.
    """
    state = read_any(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise CheckpointError(f"{path}: {explained(state)}")
    return _named(state, path)


def read_inside(path: Path) -> dict[str, Tensor] | None:
    """The state dict inside what a training script saved, or the file's own; None where there is none."""
    state = read_any(path)
    for inside in (state, *(state.get(name) for name in STATES)) if isinstance(state, Mapping) else ():
        if isinstance(inside, Mapping) and inside and all(isinstance(value, np.ndarray) for value in inside.values()):
            return _named(inside, path)
    return None


def _named(state: Mapping[Any, np.ndarray], path: Path) -> dict[str, Tensor]:
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: names tensors with something else than strings; save the model's state dict")
    return dict(state)


def read_any(path: Path) -> Any:
    """What was saved, as it is nested, with arrays for its tensors. Raises CheckpointError as `read` does."""
    data = files.map_file(path)
    try:
        return _zip(data, path) if data[:2] == b"PK" else _legacy(data)
    except DAMAGED as error:
        raise CheckpointError(
            f"{path}: not a whole file of a state dict, or one that would run code ({_reason(error)}); download it "
            "again, or save the model's state dict alone as safetensors"
        ) from None


def pickled_names(path: Path) -> list[str]:
    """The names that a file's pickles use, once each; nothing is resolved. Raises CheckpointError where it is no
    archive and no pickle, or damaged."""
    data = files.map_file(path)
    try:
        found: dict[str, None] = {}
        if data[:2] == b"PK":
            with _Directory(path) as file, zipfile.ZipFile(file) as archive:
                file.largest = LARGEST_PICKLE
                for info in archive.infolist():
                    if info.filename.endswith((".pkl", ".pickle")) and info.file_size <= LARGEST_PICKLE:
                        found |= dict.fromkeys(names(io.BytesIO(archive.read(_plain(info)))))
        else:
            found |= dict.fromkeys(names(data))  # type: ignore[arg-type]
            while data[data.tell() : data.tell() + 1] == b"\x80" and len(found) < MOST_VALUES:
                found |= dict.fromkeys(names(data))  # type: ignore[arg-type]
    except DAMAGED as error:
        raise CheckpointError(f"{path}: no pickles that can be read ({_reason(error)})") from None
    return list(found)


def explained(state: Any) -> str:
    """What a file holds that is no state dict, and what to do."""
    if not isinstance(state, Mapping):
        return f"holds one {type(state).__name__}, not a state dict"
    others = [str(name) for name, value in state.items() if not isinstance(value, np.ndarray)]
    inside = next((name for name in STATES if isinstance(state.get(name), Mapping)), None)
    advice = f"; its {inside!r} may be the model: torch.save(state[{inside!r}], ...)" if inside else ""
    return f"holds more than a model's tensors ({', '.join(others[:8])}): save the model alone{advice}"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _zip(data: mmap.mmap, path: Path) -> Any:
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        file.largest = LARGEST_PICKLE
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("it has two members of one name")
        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(roots) != 1:
            raise ValueError("it should have one data.pkl")
        (root,) = roots
        order = members.get(f"{root}byteorder")
        if order is not None and order.file_size < 16 and archive.read(_plain(order)) != b"little":
            raise ValueError("its numbers are big-endian")
        described = _plain(members[f"{root}data.pkl"])
        if described.file_size > LARGEST_PICKLE:
            raise ValueError("its pickle is larger than any state dict's")
        state = load(io.BytesIO(archive.read(described)))

        def numbers(storage: Storage) -> np.ndarray:
            info = _plain(members[f"{root}data/{storage.key}"])
            count = info.file_size // storage.dtype.itemsize
            if count < storage.count:
                raise ValueError(f"{info.filename} is too short")
            return files.view(data, storage.dtype, (count,), _content(data, info), count)

        return _arrays(state, numbers)


class _Directory(io.FileIO):
    """A file of which zipfile reads at most `largest` bytes as one: its list of members is read whole."""

    largest = LARGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.largest:
            raise ValueError("its list of members is larger than any state dict's")
        return super().read(-1 if size is None else size) or b""


def _plain(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """A member that is kept as it is: PyTorch packs none, and a packed one may be of any size."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{info.filename} is compressed or encrypted")
    return info


def _content(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header."""
    header = data[info.header_offset : info.header_offset + 30]
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"{info.filename} has no header")
    name, extra = struct.unpack_from("<HH", header, 26)
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > len(data):
        raise ValueError(f"{info.filename} is not all there")
    return start


def _legacy(data: mmap.mmap) -> Any:
    """Four pickles (magic number, protocol, the writer's sizes, the state), the storages' keys, the storages."""
    if load(data) != MAGIC:  # type: ignore[arg-type]  # a map reads and seeks as a file does
        raise ValueError("it has no magic number")
    _protocol, system, state, keys = (load(data) for _ in range(4))  # type: ignore[arg-type]
    if not system.get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    dtypes: dict[str, np.dtype] = {}
    _each(state, lambda stored: dtypes.setdefault(stored.storage.key, stored.storage.dtype))
    places: dict[str, tuple[int, int]] = {}
    place = data.tell()
    for key in keys:
        (count,) = struct.unpack_from("<q", data, place)
        itemsize = dtypes[key].itemsize
        if count < 0 or place + 8 + count * itemsize > len(data):
            raise ValueError(f"storage {key} is not all there")
        places[key] = (place + 8, count)
        place += 8 + count * itemsize

    def numbers(storage: Storage) -> np.ndarray:
        start, count = places[storage.key]
        if count < storage.count:
            raise ValueError(f"storage {storage.key} is too short")
        return files.view(data, storage.dtype, (count,), start, count)

    return _arrays(state, numbers)


def _arrays(value: Any, numbers: Numbers) -> Any:
    """A nested state with its tensors as arrays."""
    return _each(value, lambda stored: _array(stored, numbers(stored.storage)))


def _each(value: Any, function: Callable[[Stored], Any]) -> Any:
    """A nested state with `function` of each tensor in it. Raises ValueError where it is too deep or too large."""
    left = MOST_VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > 32 or left < 0:
            raise ValueError("more than 32 dicts inside one another, or more values than any model's state has")
        if isinstance(value, Stored):
            return function(value)
        if isinstance(value, Mapping):
            return {key: walk(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner, depth + 1) for inner in value]
        return value

    return walk(value, 0)


def _array(stored: Stored, numbers: np.ndarray) -> np.ndarray:
    flat = numbers.view(stored.dtype)
    if not math.prod(stored.shape):
        return files.empty(stored.dtype, stored.shape)
    last = stored.offset + sum((n - 1) * stride for n, stride in zip(stored.shape, stored.strides, strict=True))
    # Strides of 0 would let a few bytes stand for any number of values.
    if last >= len(flat) or math.prod(stored.shape) > len(flat):
        raise ValueError(f"a tensor of shape {stored.shape} is larger than its storage of {len(flat)}")
    strides = [stride * stored.dtype.itemsize for stride in stored.strides]
    start = stored.offset * stored.dtype.itemsize
    return np.ndarray(stored.shape, stored.dtype, flat.view(np.uint8).data, start, strides)


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as torch.save would, one at a time, on disk when this returns; torch.load opens the file with
    weights_only=True. Raises OSError where the disk refuses, CheckpointError for a dtype that such files have not."""
    known = set(STORAGES.values())
    for name, tensor in tensors.items():
        if tensor.dtype not in known:
            raise CheckpointError(f"{name}: PyTorch's files have no dtype {tensor.dtype}; save as safetensors")
    # A tensor that is there under two names is stored once, as torch.save does.
    storages = {id(tensor): tensor for tensor in tensors.values()}
    keys = {each: str(i) for i, each in enumerate(storages)}
    root = path.stem
    with files.written(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(f"{root}/data.pkl"), dump(tensors, lambda name: keys[id(tensors[name])]))
        archive.writestr(_member(f"{root}/byteorder"), b"little")
        for each, tensor in storages.items():
            info = _member(f"{root}/data/{keys[each]}")
            info.file_size = tensor.nbytes
            large = tensor.nbytes > zipfile.ZIP64_LIMIT // 2
            info.extra = _padding(file.tell() + 30 + len(info.filename) + 20 * large)
            with archive.open(info, "w", force_zip64=large) as member:
                member.write(contiguous(tensor))
        archive.writestr(_member(f"{root}/version"), b"3\n")


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _padding(start: int) -> bytes:
    """An extra field after which the content, else at `start`, is aligned."""
    size = -(start + 4) % ALIGNMENT
    return b"FB" + struct.pack("<H", size) + b"Z" * size
