"""Position tables: resized for other image sizes, or computed from sines."""

import jax
import jax.numpy as jnp
import numpy as np

CUBIC = -0.75
"""Free parameter of the cubic kernel (Keys, 1981). torch's; jax.image.resize has -0.5."""


def resize_grid(table_GD: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Positions of a grid of patches, (rows * columns, D), bicubically resized to another grid, in float32."""
    if old == new:
        return table_GD
    rows, columns = (cubic_weights(old[i], new[i]) for i in range(2))
    grid = table_GD.astype(jnp.float32).reshape(*old, -1)
    resized = jnp.einsum("ij,jkd,lk->ild", rows, grid, columns, precision=jax.lax.Precision.HIGHEST)
    return resized.reshape(new[0] * new[1], -1).astype(table_GD.dtype)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of bicubic interpolation with half-pixel centres and repeated edges."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        place = first + tap
        x = np.abs(centres - place)
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
        np.add.at(weights, (np.arange(new), np.clip(place, 0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def positions_from_padding(input_ids: jax.Array | None, tokens: int, index: jax.Array | int, pad: int) -> jax.Array:
    """Positions (B, T) as fairseq counts them: from pad + 1 on, skipping padding, which has position `pad`.

    The first token stands at `index`; padding before it is counted in, as in transformers. Without ids nothing is
    padding, and the result is (1, T).
    """
    real = jnp.ones((1, tokens), bool) if input_ids is None else jnp.not_equal(input_ids, pad)
    return (jnp.cumsum(real, axis=1) + index) * real + pad


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
