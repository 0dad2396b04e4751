"""Position tables: resized for other image sizes, or computed from sines."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Weights = Callable[[int, int], np.ndarray]
"""Old and new length to the (new, old) matrix of an interpolation with half-pixel centres."""

CUBIC = -0.75
"""Free parameter of the cubic kernel (Keys, 1981). torch's; jax.image.resize has -0.5."""
SMOOTH_CUBIC = -0.5
"""torch's where it filters against aliasing."""


def resize_grid(
    table_GD: jax.Array, old: tuple[int, int], new: tuple[int, int], weights: Weights | None = None
) -> jax.Array:
    """A table for the cells of a grid, (rows * columns, D), resized to another grid, in float32; bicubically unless
    other `weights` are given."""
    if old == new:
        return table_GD
    rows, columns = ((weights or cubic_weights)(old[i], new[i]) for i in range(2))
    grid = table_GD.astype(jnp.float32).reshape(*old, -1)
    resized = jnp.einsum("ij,jkd,lk->ild", rows, grid, columns, precision=jax.lax.Precision.HIGHEST)
    return resized.reshape(new[0] * new[1], -1).astype(table_GD.dtype)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Bicubic, with repeated edges."""
    return _taps(old, new, (-1, 0, 1, 2), lambda x: _cubic(x, CUBIC))


def linear_weights(old: int, new: int) -> np.ndarray:
    """Bilinear, with repeated edges."""
    return _taps(old, new, (0, 1), lambda x: 1 - np.abs(x))


def smooth_cubic_weights(old: int, new: int) -> np.ndarray:
    """Bicubic, with a kernel that widens as the grid shrinks, and no taps beyond the edges."""
    stretch = max(old / new, 1)
    weights = _cubic((_centres(old, new)[:, None] - np.arange(old)) / stretch, SMOOTH_CUBIC)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _centres(old: int, new: int) -> np.ndarray:
    return (np.arange(new) + 0.5) * old / new - 0.5


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _taps(old: int, new: int, taps: tuple[int, ...], kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    centres = _centres(old, new)
    weights = np.zeros((new, old))
    for tap in taps:
        place = np.floor(centres).astype(int) + tap
        np.add.at(weights, (np.arange(new), np.clip(place, 0, old - 1)), kernel(centres - place))
    return weights.astype(np.float32)


def positions_beside_padding(input_ids: jax.Array | None, tokens: int, index: jax.Array | int, pad: int) -> jax.Array:
    """Positions (B, T) as fairseq counts them, leaving out padding. What stands before `index` is counted in, padding
    too, as in transformers. Without ids nothing is padding, and the result is (1, T)."""
    real = jnp.ones((1, tokens), bool) if input_ids is None else jnp.not_equal(input_ids, pad)
    return jnp.cumsum(real, axis=1) + index - 1


def rows_behind_padding(input_ids: jax.Array | None, positions: jax.Array, pad: int) -> jax.Array:
    """Rows (B, T) of fairseq's table of positions: from pad + 1 on, and `pad` for padding."""
    rows = positions + 1 + pad
    return rows if input_ids is None else jnp.where(input_ids != pad, rows, pad)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Sines, then cosines, of each position (arXiv:1706.03762, 3.5, in tensor2tensor's order): (..., width) float32."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -np.float32(np.log(10000) / (half - 1)))
    angles = positions[..., None].astype(jnp.float32) * frequencies
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(table, [(0, 0)] * positions.ndim + [(0, width - 2 * half)])


def interleaved_sinusoids(entries: int, width: int) -> np.ndarray:
    """Sines in even columns, cosines in odd ones (arXiv:1706.03762, 3.5, as written there): (entries, width)."""
    angles = np.arange(entries)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
