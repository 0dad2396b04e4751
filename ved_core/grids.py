"""Where the tokens of an image stand to each other: static, shared by both frameworks, and computed while tracing."""

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


@functools.lru_cache(maxsize=32)
def relative_index_cls(rows: int, columns: int) -> np.ndarray:
    """As `relative_index`, with CLS before the grid. The table ends with its entries: CLS seeing a patch, being seen
    by one, and seeing itself."""
    index = np.pad(relative_index(rows, columns), ((1, 0), (1, 0)))
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return frozen(index)


@functools.lru_cache(maxsize=32)
def log_offsets(window: int, pretrained: int) -> np.ndarray:
    """((2 * window - 1)**2, 2) float32: all offsets in a window, row by row, on Swin V2's logarithmic scale.

    `pretrained`: the window in whose sides they are counted, 0 for this one.
    """
    steps = np.arange(1 - window, window, dtype=np.float32) / np.float32(max((pretrained or window) - 1, 1)) * 8
    scaled = (np.sign(steps) * np.log2(np.abs(steps) + 1) / np.log2(8)).astype(np.float32)
    return frozen(np.stack(np.meshgrid(scaled, scaled, indexing="ij"), axis=-1).reshape(-1, 2))


def frozen(array: np.ndarray) -> np.ndarray:
    """The array, which callers share, made read-only."""
    array.flags.writeable = False
    return array
