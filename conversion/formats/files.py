"""What readers and writers of files share."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from conversion.tensors import Tensor, contiguous
from ved_core.errors import CheckpointError

SIGNATURES = {
    "torch": (b"PK\x03\x04", b"\x80\x02"),
    "tf": (b"\x89HDF\r\n\x1a\n",),
    "flax": (bytes([0xDE]), bytes([0xDF]), *(bytes([0x80 | count]) for count in range(16))),
}
"""How files of a format begin; a safetensors file has its header's length there."""


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, read-only and read when used. Raises CheckpointError where it is missing or empty."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except ValueError:
        raise CheckpointError(f"{path}: not a whole file, but an empty one; download or copy it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def identity(path: Path) -> tuple[int, int, int]:
    """What tells a file or folder from another that has come into its place. Raises OSError where there is none."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def check_identity(path: Path, before: tuple[int, int, int]) -> None:
    """Raise CheckpointError where another file or folder has come into the place of one that is being read."""
    try:
        same = identity(path) == before
    except OSError:
        same = False
    if not same:
        raise CheckpointError(f"{path}: was written anew while it was read; do it again")


def sniffed(path: Path) -> str | None:
    """The format that a file's first bytes are of, None where they are of none. Raises CheckpointError where it cannot
    be read, or Git LFS left something else."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if head.startswith(b"version https://"):
        raise CheckpointError(f"{path}: a pointer that Git LFS left in place of the file; fetch it with `git lfs pull`")
    if head[8:9] == b"{" and head[6:8] == b"\0\0":
        return "safetensors"
    for name, signatures in SIGNATURES.items():
        # A map of two entries and a pickle begin alike; a pickle's second byte is its protocol.
        if head.startswith(signatures):
            return name
    return None


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file, on disk when the block is left. Raises OSError where the disk refuses.

    One that was there is not written over: what is mapped of it stays as it is.
    """
    path.unlink(missing_ok=True)
    with path.open("x+b") as file:
        yield file
        file.flush()
        flush(file)


def flush(file: BinaryIO) -> None:
    """Wait until a file's bytes are on disk. Raises OSError where they are not."""
    os.fsync(file.fileno())


def write_text(path: Path, content: str | bytes) -> None:
    """Write a text file, on disk when this returns. Raises OSError where the disk refuses."""
    with written(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def view(data: mmap.mmap, dtype: np.dtype, shape: tuple[int, ...], start: int, count: int) -> np.ndarray:
    """`count` numbers of mapped bytes from `start` on, as an array. Raises ValueError where they are not there."""
    return np.frombuffer(data, dtype, count, start).reshape(shape) if count else empty(dtype, shape)


def empty(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of no numbers, read-only as views of files are."""
    return np.frombuffer(b"", dtype).reshape(shape)


def put(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's bytes in C order."""
    file.write(contiguous(tensor))
