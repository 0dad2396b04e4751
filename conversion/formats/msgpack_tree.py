"""MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md) as Flax keeps trees of arrays in it.

A reader that leaves arrays in the mapped file, where the msgpack library would copy each; and a writer that takes one
at a time. An array is an extension of type 1 around (shape, dtype name, bytes); over 2**30 bytes, a map of chunks.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import msgpack
import numpy as np

from conversion.formats import files
from conversion.tensors import Lazy, Tensor, contiguous

ARRAY = 1
SCALAR = 3
CHUNK = 2**30
MARK = "__msgpack_chunked_array__"
DEEPEST = 64
"""How many maps inside maps a tree may have."""
DEEPEST_SHAPE = 32
MOST_ENTRIES = 2**16
"""How many entries a tree's maps may have together: a small file could fill the memory with small objects."""
DTYPES = {
    dtype.name: dtype
    for dtype in map(
        np.dtype,
        (
            *(np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64),
            *(np.float16, np.float32, np.float64),
            *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        ),
    )
}
# First byte -> struct of the length that follows.
MAPS = {0xDE: ">H", 0xDF: ">I"}
ARRAYS = {0xDC: ">H", 0xDD: ">I"}
STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class Reader:
    """Reads one tree. Its methods raise ValueError where the bytes are not such a tree, struct.error or IndexError
    where they end too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0
        self.entries = 0

    def tree(self) -> Any:
        """The whole file's tree: nested dicts of arrays and plain values, numbers as keys made strings."""
        value = self.value(0)
        if self.place != len(self.data):
            raise ValueError(f"{len(self.data) - self.place} bytes follow behind its end")
        return value

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} maps inside one another")
        first = self.byte()
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first in NUMBERS:
            return self.number(NUMBERS[first])
        count = self.count(first, 0x80, 0x90, MAPS)
        if count is not None:
            return self.map(count, depth)
        count = self.count(first, 0xA0, 0xC0, STRINGS)
        if count is not None:
            return self.take(count).decode()
        if first in EXTENSIONS or 0xD4 <= first <= 0xD8:
            size = self.number(EXTENSIONS[first]) if first in EXTENSIONS else 1 << (first - 0xD4)
            return self.array(self.byte(), size)
        raise ValueError(f"byte {self.place - 1} begins a value ({first:#x}) that Flax's trees have not")

    def map(self, count: int, depth: int) -> Any:
        self.entries += count
        if self.entries > MOST_ENTRIES:
            raise ValueError(f"more than {MOST_ENTRIES} entries, which no model has")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise ValueError(f"byte {self.place}: a key that is neither a string nor a number")
            if str(key) in found:
                raise ValueError(f"{key} is there twice")
            found[str(key)] = self.value(depth + 1)
        return joined(found) if MARK in found else found

    def array(self, code: int, size: int) -> Any:
        end = self.place + size
        if code not in (ARRAY, SCALAR) or self.count(self.byte(), 0x90, 0xA0, ARRAYS) != 3:
            raise ValueError(f"byte {self.place}: an extension ({code}) that is no array")
        rank = self.count(self.byte(), 0x90, 0xA0, ARRAYS)
        if rank is None or rank > DEEPEST_SHAPE:
            raise ValueError(f"byte {self.place}: an array of unknown shape")
        shape = tuple(self.value(DEEPEST) for _ in range(rank))
        dtype = DTYPES.get(str(self.value(DEEPEST)))
        length = self.count(self.byte(), 0, 0, BYTES)
        if not are_sizes(shape) or dtype is None:
            raise ValueError(f"byte {self.place}: an array of unknown shape or dtype")
        count = math.prod(shape)
        if length is None or length != count * dtype.itemsize or self.place + length != end or end > len(self.data):
            raise ValueError(f"byte {self.place}: an array whose size is not that of its shape {shape}")
        start, self.place = self.place, end
        return files.view(self.data, dtype, shape, start, count)

    def count(self, first: int, low: int, high: int, longer: Mapping[int, str]) -> int | None:
        """The length that a first byte between `low` and `high` has in itself, or that follows; None for others."""
        if low <= first < high:
            return first - low
        return self.number(longer[first]) if first in longer else None

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return value

    def take(self, size: int) -> bytes:
        found = self.data[self.place : self.place + size]
        if len(found) != size:
            raise ValueError("it ends inside a string")
        self.place += size
        return found


def are_sizes(shape: tuple[Any, ...]) -> bool:
    """Whether these are an array's dimensions."""
    return len(shape) <= DEEPEST_SHAPE and all(type(n) is int and n >= 0 for n in shape)


def joined(chunked: Mapping[str, Any]) -> Tensor:
    """An array out of Flax's map of its chunks."""
    shape = tuple(chunked["shape"][str(axis)] for axis in range(len(chunked["shape"])))
    chunks = [chunked["chunks"][str(i)] for i in range(len(chunked["chunks"]))]
    if not chunks or not all(isinstance(chunk, np.ndarray) and chunk.dtype == chunks[0].dtype for chunk in chunks):
        raise ValueError("an array in chunks of several dtypes")
    if not are_sizes(shape) or sum(chunk.size for chunk in chunks) != math.prod(shape):
        raise ValueError(f"an array in chunks that are together not of its shape {shape}")
    if not math.prod(shape):
        return files.empty(chunks[0].dtype, shape)
    return Lazy(shape, chunks[0].dtype, lambda: np.concatenate([chunk.reshape(-1) for chunk in chunks]).reshape(shape))


def write(file: BinaryIO, tree: Mapping[str, Any]) -> None:
    """Write a tree of tensors as `flax.serialization.to_bytes` would, its keys sorted."""
    packer = msgpack.Packer()
    file.write(packer.pack_map_header(len(tree)))
    for name in sorted(tree):
        file.write(packer.pack(name))
        if isinstance(tree[name], Mapping):
            write(file, tree[name])
        elif tree[name].nbytes > CHUNK:
            write_chunks(file, tree[name], packer)
        else:
            write_array(file, tree[name].shape, tree[name].dtype, contiguous(tree[name]), packer)


def write_chunks(file: BinaryIO, tensor: Tensor, packer: msgpack.Packer) -> None:
    """Write an array in pieces."""
    data = contiguous(tensor)
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    file.write(packer.pack_map_header(3) + packer.pack(MARK) + packer.pack(True) + packer.pack("shape"))
    file.write(packer.pack({str(axis): size for axis, size in enumerate(tensor.shape)}) + packer.pack("chunks"))
    file.write(packer.pack_map_header(len(pieces)))
    for i, piece in enumerate(pieces):
        file.write(packer.pack(str(i)))
        write_array(file, (len(piece) // tensor.dtype.itemsize,), tensor.dtype, piece, packer)


def write_array(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, data: memoryview, packer: msgpack.Packer
) -> None:
    """Write an array's extension; `data`: its bytes."""
    size = data.nbytes
    inner = packer.pack_array_header(3) + packer.pack(shape) + packer.pack(dtype.name) + _header(BYTES, size)
    total = len(inner) + size
    fixed = total in (1, 2, 4, 8, 16)  # sizes that have a first byte of their own
    head = bytes([0xD4 + total.bit_length() - 1]) if fixed else _header(EXTENSIONS, total)
    file.write(head + bytes([ARRAY]) + inner)
    file.write(data)


def _header(codes: Mapping[int, str], size: int) -> bytes:
    """The first byte and length of bytes or an extension, in the shortest form."""
    code, form = next((code, form) for code, form in codes.items() if size < 256 ** struct.calcsize(form))
    return bytes([code]) + struct.pack(form, size)
