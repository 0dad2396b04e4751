"""Square windows on a grid of tokens (arXiv:2103.14030), and the merging of neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ved_flax.layers.attention import Attention
from ved_flax.layers.slicing import in_slices, large
from ved_flax.platforms import choose

Grid = tuple[int, int]
"""Rows and columns."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """A partition of a grid, moved down and right by `shift`; what it lacks to whole windows is padded with zeros."""

    grid: Grid
    size: int
    shift: int

    @property
    def counts(self) -> Grid:
        """Windows per column and per row."""
        rows, columns = self.grid
        return -(-rows // self.size), -(-columns // self.size)

    def split(self, x_BPD: jax.Array) -> jax.Array:
        """(B, P, D) to (B, W, S, D)."""
        (down, right), size = self.counts, self.size
        x = pad_grid(x_BPD.reshape(x_BPD.shape[0], *self.grid, -1), size)
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = x.reshape(x.shape[0], down, size, right, size, -1).swapaxes(2, 3)
        return x.reshape(x.shape[0], down * right, size * size, -1)

    def join(self, x_BWSD: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        (down, right), size, batch = self.counts, self.size, x_BWSD.shape[0]
        x = x_BWSD.reshape(batch, down, right, size, size, -1).swapaxes(2, 3)
        x = x.reshape(batch, down * size, right * size, -1)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        rows, columns = self.grid
        return x[:, :rows, :columns].reshape(batch, rows * columns, -1)

    def regions(self) -> jax.Array | None:
        """Of each token (W, S): between those of different ones is no attention, for only the shift brought them into
        one window. None where nothing is shifted."""
        if not self.shift:
            return None
        rows, columns = (self._along(count * self.size) for count in self.counts)
        return (3 * rows[:, None, :, None] + columns[None, :, None, :]).reshape(-1, self.size * self.size)

    def _along(self, length: int) -> jax.Array:
        """Along one axis, (windows, size): before the last window, in it, and what was moved round the edge."""
        place = jnp.arange(length)
        region = (place >= length - self.size).astype(jnp.int32) + (place >= length - self.shift)
        return region.reshape(-1, self.size)


def attend_windows(
    attn: Attention,
    x_BPD: jax.Array,
    windows: Windows,
    bias_NSS: jax.Array,
    masked: float,
    rngs: nnx.Rngs | None,
    need_weights: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Self-attention within windows; weights, if wanted, (B, W, N, S, S). `masked`: added to scores between regions."""

    def attend(x_BWSD: jax.Array, regions_WS: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        bias = bias_NSS if regions_WS is None else bias_NSS + mask(regions_WS, masked)
        return attn(x_BWSD, attn.keys_values(x_BWSD), bias, rngs, need_weights=need_weights)

    def whole(x_BWSD: jax.Array, regions_WS: jax.Array | None) -> jax.Array:
        return attend(x_BWSD, regions_WS)[0]

    def sliced(x_BWSD: jax.Array, regions_WS: jax.Array | None) -> jax.Array:
        regions = None if regions_WS is None else jnp.tile(regions_WS, (batch, 1))
        return in_slices(whole, scores, x_BWSD.reshape(-1, *x_BWSD.shape[2:]), regions).reshape(x_BWSD.shape)

    x_BWSD, regions_WS = windows.split(x_BPD), windows.regions()
    batch, count, tokens, _ = x_BWSD.shape
    scores = attn.heads * tokens**2
    if not need_weights and large(batch * count, scores):
        return windows.join(choose(x_BWSD, regions_WS, cpu=sliced, default=whole)), None
    x_BWSD, weights = attend(x_BWSD, regions_WS)
    return windows.join(x_BWSD), weights


def mask(regions_WS: jax.Array, masked: float) -> jax.Array:
    """Bias (W, 1, S, S), float32, of `masked` between tokens of different regions. Computed where it is used: on a
    page-sized grid it would be a constant of 100 MB."""
    same = regions_WS[:, None, :, None] == regions_WS[:, None, None, :]
    return jnp.where(same, jnp.float32(0), jnp.float32(masked))


def pad_grid(x_BRCD: jax.Array, multiple: int) -> jax.Array:
    """Zeros behind the last row and column, up to the next `multiple`."""
    rows, columns = x_BRCD.shape[1:3]
    if rows % multiple == 0 and columns % multiple == 0:
        return x_BRCD
    return jnp.pad(x_BRCD, ((0, 0), (0, -rows % multiple), (0, -columns % multiple), (0, 0)))


def merge_grid(x_BPD: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
    """Four neighbours to one token, column by column: (B, P, D) to (B, P / 4, 4 D), and the new grid."""
    x = pad_grid(x_BPD.reshape(x_BPD.shape[0], *grid, -1), 2)
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // 2, 2, columns // 2, 2, width).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(batch, -1, 4 * width), (rows // 2, columns // 2)
