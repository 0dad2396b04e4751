"""Where the tokens of an image stand to each other."""

import functools

import numpy as np


def fit_window(side: int, window: int) -> tuple[int, int]:
    """Size and shift of the windows on a grid with this `side`: windows that fill it are neither larger nor shifted."""
    return (side, 0) if side <= window else (window, window // 2)


@functools.lru_cache(maxsize=32)
def relative_index(rows: int, columns: int) -> np.ndarray:
    """(S, S) int32: where a table of all (2 * rows - 1) * (2 * columns - 1) offsets holds that of token s from t."""
    row, column = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    down = row[:, None] - row + rows - 1
    right = column[:, None] - column + columns - 1
    return frozen(down * (2 * columns - 1) + right)


def frozen(array: np.ndarray) -> np.ndarray:
    """The array, which callers share, made read-only."""
    array.flags.writeable = False
    return array
