"""Work on many rows, and windows, in slices, on CPUs, where nothing is learned."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from ved_core.slicing import even

LARGE = 24 * 2**20
"""Bytes of an array from which on XLA fuses norms, products and activations into slow operations of many threads' room,
for which the C library asks for new pages whenever they run."""
SLICE = 10 * 2**20
"""Bytes that stay in the caches from one operation to the next."""

_nothing_is_learned: ContextVar[bool] = ContextVar("nothing_is_learned", default=False)


@contextlib.contextmanager
def nothing_is_learned() -> Iterator[None]:
    """While this lasts, what is traced has no gradients: those of a loop would keep the whole in every slice."""
    token = _nothing_is_learned.set(True)
    try:
        yield
    finally:
        _nothing_is_learned.reset(token)


def large(rows: Any, numbers: int) -> bool:
    """Whether a CPU takes so many rows in slices: `numbers` float32 of each lie in a large array on the way."""
    # An exported program's batch is no number.
    return _nothing_is_learned.get() and isinstance(rows, int) and rows * numbers * 4 > LARGE


def in_slices(run: Callable[..., jax.Array], numbers: int, x: jax.Array, *others: jax.Array) -> jax.Array:
    """run(x, *others), of x's shape and dtype, slice by slice along the first axis of all of them. `run` computes every
    row by itself; `numbers`: see `large`."""
    rows = len(x)
    size = even(rows, max(1, SLICE // (numbers * 4)))

    def write(x: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
        some = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in (x, *others))
        # In place: an array to put slices into would have to be written first.
        return jax.lax.dynamic_update_slice_in_dim(x, run(*some), start, 0)

    x = jax.lax.fori_loop(0, rows // size, lambda number, x: write(x, number * size, size), x)
    return write(x, rows - rows % size, rows % size) if rows % size else x
