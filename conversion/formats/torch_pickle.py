"""The pickles inside PyTorch's files: read with a short list of names that stand for values, written by hand.

Nothing that a pickle names is imported or called: each name of a short list has a stand-in of ours, every other is
refused, and so is every opcode that a state dict does not need.
"""

import dataclasses
import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from conversion.tensors import Tensor

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),
}
TORCH_DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
}
INERT = ("argparse.Namespace", "omegaconf.", "fairseq.", "pathlib.PosixPath", "torch.device", "numpy.")
"""Names, or how names begin, of what training scripts keep beside a model: read as nothing, whatever it was."""
REFUSED = frozenset(
    {
        *("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BYTEARRAY8", "NEXT_BUFFER"),
        *("EMPTY_SET", "ADDITEMS", "FROZENSET"),
    }
)
"""Opcodes that no state dict needs; the others make plain values, or what `ALLOWED` stands for."""
MOST_OPCODES = 2**19
"""In one pickle, of which a tensor takes about 40: what reading one costs stays in proportion to a model's size."""
LONG, LONGEST = 2**64, 2**128
"""Whole numbers of at least the first size serve to fill dicts whose keys all collide; random generators have a few."""
MOST_LONG = 64


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are: the file's key for them, and how many."""

    __slots__ = ("count", "dtype", "key")
    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as the pickle describes it: strides and offset in numbers of `dtype`."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")
    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Inert:
    """What stands for an object that is of no use here."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""


class Ordered(dict):
    """An OrderedDict that takes no attributes (torch hangs metadata on its state dicts)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


class Name:
    """What stands for a name that a pickle uses: a function of ours to call, or a dtype. A pickle cannot change it, as
    the opcode BUILD would change a function's defaults, or bfloat16 itself for the whole process."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *arguments: Any) -> Any:
        return self.value(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what a name stands for")


def _tensor_v2(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Stored:
    return _described(storage, storage.dtype, offset, shape, strides)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Stored:
    return _described(storage, dtype.value if isinstance(dtype, Name) else None, offset, shape, strides)


def _described(storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any) -> Stored:
    sizes = (offset, *shape, *strides)
    known = isinstance(storage, Storage) and isinstance(dtype, np.dtype) and len(shape) == len(strides) <= 32
    if not known or not all(type(n) is int and 0 <= n < 2**62 for n in sizes):
        raise pickle.UnpicklingError("a tensor of impossible shape or strides")
    return Stored(storage, dtype, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Any:
    return data


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": Ordered,
    "torch._utils._rebuild_tensor": Name(_tensor_v2),
    "torch._utils._rebuild_tensor_v2": Name(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Name(_tensor_v3),
    "torch._utils._rebuild_parameter": Name(_parameter),
    "torch.Size": tuple,
    "torch.storage.UntypedStorage": Name(STORAGES["UntypedStorage"]),
    **{f"torch.{name}": Name(dtype) for name, dtype in (STORAGES | TORCH_DTYPES).items()},
}
"""Every name that a pickle may use, and what stands for it."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        kind = verdict(whole)
        if kind != "refused":
            return ALLOWED[whole] if kind == "allowed" else Inert
        raise pickle.UnpicklingError(f"it names {whole}, which is not loaded from a checkpoint")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, count, *rest = pid
        dtype = dtype.value if isinstance(dtype, Name) else None
        plain = isinstance(key, str) and type(count) is int and count >= 0
        if kind != "storage" or not isinstance(dtype, np.dtype) or not plain or (rest and rest[0] is not None):
            raise pickle.UnpicklingError("it refers to something else than a tensor's numbers")
        return Storage(dtype, key, count)


def load(file: BinaryIO) -> Any:
    """The pickle at the file's place, its tensors as `Stored`. Raises pickle.UnpicklingError, or ValueError, KeyError,
    TypeError, IndexError, EOFError, AttributeError and the like where it is damaged."""
    start = file.tell()
    puts = longs = 0
    for number, (opcode, argument, place) in enumerate(pickletools.genops(file)):
        if number > MOST_OPCODES:
            raise pickle.UnpicklingError("it is longer than any state dict's")
        size = abs(argument) if isinstance(argument, int) else 0
        longs += size >= LONG
        if size >= LONGEST or longs > MOST_LONG:
            raise pickle.UnpicklingError(f"it has numbers larger than any model's at byte {place}")
        if opcode.name in REFUSED:
            raise pickle.UnpicklingError(f"it has the opcode {opcode.name} at byte {place}")
        # A memo is as large as the largest number in it.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            puts += 1
            if argument is None or int(argument) > 4 * puts + 64:
                raise pickle.UnpicklingError(f"it memorises out of turn at byte {place}")
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start))).load()


def names(file: BinaryIO) -> Iterator[str]:
    """The names that the pickle at the file's place uses, as module.name, and then what else could call code; nothing
    is resolved. Raises ValueError and the like where it is damaged."""
    texts: list[str] = ["?", "?"]
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MOST_OPCODES:
            raise ValueError("it is longer than any state dict's")
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield f"{texts[-2]}.{texts[-1]}"  # where the two come out of the memo, the latest ones that were there
        elif opcode.name.startswith("EXT"):
            yield f"extension {argument}"
        elif isinstance(argument, str) and "UNICODE" in opcode.name:
            texts = [texts[-1], argument[:200]]


def verdict(name: str) -> str:
    """What reading does with a name: "allowed", "inert" (read as nothing) or "refused"."""
    if name in ALLOWED:
        return "allowed"
    return "inert" if name.startswith(INERT) else "refused"


def dump(tensors: Mapping[str, Tensor], key_of: Callable[[str], str]) -> bytes:
    """A state dict's pickle, protocol 2, as torch.save writes one; `key_of`: a tensor's storage's key.

    Raises KeyError for a dtype that torch has no storage for.
    """
    codes = {dtype: name for name, dtype in reversed(STORAGES.items()) if name != "UntypedStorage"}
    parts = [b"\x80\x02}("]
    for name, tensor in tensors.items():
        count = math.prod(tensor.shape)
        storage = b"(" + _text("storage") + f"ctorch\n{codes[tensor.dtype]}\n".encode() + _text(key_of(name))
        storage += _text("cpu") + _number(count) + b"tQ"
        shape = (
            b"(" + b"".join(map(_number, tensor.shape)) + b"t(" + b"".join(map(_number, _strides(tensor.shape))) + b"t"
        )
        hooks = b"ccollections\nOrderedDict\n)R"
        parts.append(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"\x89")
        parts.append(hooks + b"tR")
    return b"".join([*parts, b"u."])


def _strides(shape: tuple[int, ...]) -> list[int]:
    """In numbers, of an array in C order."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * max(shape[axis], 1)
    return strides


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
