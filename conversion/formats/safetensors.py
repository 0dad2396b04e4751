"""safetensors files (https://github.com/huggingface/safetensors): memory-mapped reading, writing tensor by tensor."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from conversion.formats import files
from conversion.tensors import Tensor
from ved_core.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
"""In the library's order, by which files are sorted: those that need the widest alignment come first."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
RANKS = {code: rank for rank, code in enumerate(DTYPES)}
LARGEST_HEADER = 8 * 2**20
"""Bytes of a header that is read, about 100 for each tensor: making it takes many times as many."""


def read(path: Path) -> dict[str, Tensor]:
    """The file's tensors as read-only views of one memory map: nothing is read before it is used.

    Raises CheckpointError naming the file where it is missing, truncated or malformed, or has a dtype not in DTYPES.
    """
    _, header, data, start = _opened(path)
    return {name: _view(data, start, name, entry, path) for name, entry in header.items()}


def layout(path: Path) -> str:
    """Whose names and layouts the file has: "pt", or "flax" or "tf" where Hugging Face's classes of these wrote it."""
    return _opened(path)[0].get("format", "pt")


def _opened(path: Path) -> tuple[dict[str, str], dict[str, dict], mmap.mmap, int]:
    """Metadata, entries, mapped bytes, and where the tensors begin in them."""
    data = files.map_file(path)
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) >= start > LARGEST_HEADER:
        raise CheckpointError(f"{path}: its header of {start} bytes is larger than any model's")
    try:
        # The library's parser checks the header: sizes, overlaps, holes, and that the data is all there.
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return metadata, header, data, start


def _view(data: mmap.mmap, start: int, name: str, entry: dict, path: Path) -> np.ndarray:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}, known are {', '.join(DTYPES)}")
    first, last = entry["data_offsets"]
    try:
        return files.view(data, dtype, tuple(entry["shape"]), start + first, (last - first) // dtype.itemsize)
    except (ValueError, OverflowError) as error:  # dimensions that numpy has not
        raise CheckpointError(f"{path}: {name} has the shape {entry['shape']} ({error})") from None


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, on disk when this returns. Raises OSError where the disk refuses."""
    codes = {name: CODES[tensor.dtype] for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-RANKS[codes[name]], name))
    # transformers refuses files without this entry.
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": codes[name], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with files.written(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            files.put(file, tensors[name])
