"""Work on many rows, and on many windows, in slices, on CPUs."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import jax

from ved_core.slicing import even

LARGE = 24 * 2**20
"""Bytes of an array from which on products that make or read it reach but a third to two thirds of their rate."""
SLICE = 10 * 2**20
"""Bytes that stay in the caches from one operation to the next."""

F = TypeVar("F", bound=Callable[..., Any])

_allowed: ContextVar[bool] = ContextVar("allowed", default=False)


def allowing_slices(function: F) -> F:
    """The function, inside of which what is `large` is: one whose gradients nobody wants, on a single device."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        token = _allowed.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _allowed.reset(token)

    return run  # type: ignore[return-value]


def large(rows: Any, numbers: int) -> bool:
    """Whether a CPU takes so many rows in slices: `numbers` float32 of each lie in one array."""
    # An exported program's batch is no number.
    return _allowed.get() and isinstance(rows, int) and rows * numbers * 4 > LARGE


def in_slices(run: Callable[..., jax.Array], numbers: int, x: jax.Array, *others: jax.Array | None) -> jax.Array:
    """run(x, *others), of x's shape and dtype, slice by slice along the first axis of every array. `run` computes each
    row by itself; `numbers`: see `large`."""
    rows = len(x)
    size = even(rows, max(1, SLICE // (numbers * 4)))

    def write(x: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
        some = jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), (x, *others))
        # In place: an array to put slices into would have to be written first.
        return jax.lax.dynamic_update_slice_in_dim(x, run(*some), start, 0)

    x = jax.lax.fori_loop(0, rows // size, lambda number, x: write(x, number * size, size), x)
    return write(x, rows - rows % size, rows % size) if rows % size else x
