"""Tensors that are made when they are asked for, so that a checkpoint passes through memory one tensor at a time."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from ved_core.errors import CheckpointError

FLOATS = frozenset(
    map(
        np.dtype,
        (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    )
)
"""Dtypes of weights, which another one may be asked for; integers are left as they are."""

T = TypeVar("T")

COPIES = 4
"""Tensors that are read at a time."""

PIECE = 1 << 24
"""Bytes that are compared at a time: comparing makes an array of the result."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor of known shape and dtype; `np.asarray` makes it, anew each time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.make(), dtype)


Tensor = np.ndarray | Lazy
"""An array (often a view of a mapped file) or a Lazy."""


def mapped(function: Callable[[np.ndarray], np.ndarray], tensor: Tensor) -> Tensor:
    """`function(tensor)`: at once where it is an array, later where it is Lazy. It must not change the dtype."""
    if isinstance(tensor, np.ndarray):
        return function(tensor)
    shape = function(np.broadcast_to(np.zeros((), np.int8), tensor.shape)).shape
    return Lazy(shape, tensor.dtype, lambda: function(np.asarray(tensor)))


def each(function: Callable[[Any], T], tensors: Mapping[str, Any]) -> dict[str, T]:
    """`function` of every tensor, by name: of arrays, views of mapped files, several at a time, because reading them is
    waiting for pages and copying, which need not hold Python's lock; of others in turn."""
    with ThreadPoolExecutor(COPIES) as pool:
        running = {name: pool.submit(function, one) for name, one in tensors.items() if isinstance(one, np.ndarray)}
        try:
            return {name: running[name].result() if name in running else function(tensors[name]) for name in tensors}
        finally:
            pool.shutdown(cancel_futures=True)


def cast(name: str, tensor: Tensor, dtype: np.dtype | None) -> Tensor:
    """A floating-point tensor rounded to `dtype`, later; any other, or where `dtype` is None, as it is.

    Making it raises CheckpointError where a value is too large for `dtype`.
    """
    if dtype is None or tensor.dtype == dtype or tensor.dtype not in FLOATS:
        return tensor

    def rounded() -> np.ndarray:
        array = np.asarray(tensor)
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        if np.isinf(result).sum() > np.isinf(array).sum():
            raise CheckpointError(f"{name}: values of up to {np.abs(array).max():.4g} are too large for {dtype}")
        return result

    return Lazy(tensor.shape, dtype, rounded)


def contiguous(tensor: Tensor) -> memoryview:
    """The tensor's bytes in C order: what files hold."""
    return np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8).data


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (np.frombuffer(contiguous(tensor), np.uint8) for tensor in (one, other))
    pieces = (slice(start, start + PIECE) for start in range(0, len(first), PIECE))
    return all(np.array_equal(first[piece], second[piece]) for piece in pieces)
