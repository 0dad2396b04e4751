"""safetensors files (https://github.com/huggingface/safetensors): memory-mapped reading, whole-file writing."""

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from ved_core.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def read(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors as read-only views of one memory map: nothing is read before it is used.

    Raises CheckpointError naming the file where it is missing, truncated or malformed, or has a dtype not in DTYPES.
    """
    try:
        # The library's parser checks the header: sizes, overlaps, holes, and that the data is all there.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: _view(data, start, name, entry, path) for name, entry in header.items()}


def _view(data: mmap.mmap, start: int, name: str, entry: dict, path: Path) -> np.ndarray:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}, known are {', '.join(DTYPES)}")
    first, last = entry["data_offsets"]
    return np.frombuffer(data, dtype, (last - first) // dtype.itemsize, start + first).reshape(entry["shape"])


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a file, on disk when this returns. Raises OSError where the disk refuses."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for name, array in arrays.items()
    }
    try:
        # transformers refuses files without this entry.
        safetensors.serialize_file(specs, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: could not be written ({error})") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
