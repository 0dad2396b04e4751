"""Attention biases by the relative position of two tokens, (N, S, S) in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ved_core.grids import frozen, relative_index
from ved_flax.layers.build import Builder
from ved_flax.layers.positions import linear_weights, resize_grid


def look_up(table_EN: jax.Array, index_SS: np.ndarray) -> jax.Array:
    """A table's entries for every pair of tokens, heads first."""
    return table_EN.astype(jnp.float32).T.at[:, index_SS].get(mode="promise_in_bounds")


class WindowBias(nnx.Module):
    """A learned bias for every offset within a square window."""

    def __init__(self, window: int, heads: int, make: Builder) -> None:
        self.span = 2 * window - 1
        self.table = make.parameter(self.span**2, heads)

    def __call__(self, window: int) -> jax.Array:
        """For windows no larger than the table's."""
        edge = (self.span + 1) // 2 - window
        table = self.table[...].reshape(self.span, self.span, -1)
        table = table[edge : self.span - edge, edge : self.span - edge]
        return look_up(table.reshape((2 * window - 1) ** 2, -1), relative_index(window, window))


class GridBias(nnx.Module):
    """A learned bias for every offset on a grid, with CLS before it; resized for other grids."""

    def __init__(self, grid: tuple[int, int], heads: int, make: Builder) -> None:
        self.spans = (2 * grid[0] - 1, 2 * grid[1] - 1)
        self.table = make.parameter(self.spans[0] * self.spans[1] + 3, heads)

    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        table, cls = jnp.split(self.table[...], [self.spans[0] * self.spans[1]])
        # Read as columns by rows, even on the table's own grid: transformers does, so a grid that is not square was
        # trained so.
        table = resize_grid(table, self.spans[::-1], (2 * grid[0] - 1, 2 * grid[1] - 1), linear_weights)
        return look_up(jnp.concatenate([table, cls]), relative_index_cls(*grid))


class ContinuousBias(nnx.Module):
    """A bias that a small network computes from each offset within a square window (arXiv:2111.09883, 3.3)."""

    HIDDEN = 512
    LARGEST = 16.0

    def __init__(self, pretrained: int, heads: int, make: Builder) -> None:
        """`pretrained`: the window that offsets are counted in, 0 for each window itself."""
        make = dataclasses.replace(make, dtype=jnp.dtype(jnp.float32))
        self.pretrained = pretrained
        self.up = make.linear(2, self.HIDDEN)
        self.down = make.linear(self.HIDDEN, heads, bias=False)

    def __call__(self, window: int) -> jax.Array:
        table = self.down(jax.nn.relu(self.up(jnp.asarray(log_offsets(window, self.pretrained)))))
        return look_up(self.LARGEST * jax.nn.sigmoid(table), relative_index(window, window))


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
