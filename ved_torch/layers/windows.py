"""Square windows on a grid of tokens (arXiv:2103.14030), and the merging of neighbours."""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from ved_torch.layers.attention import Attention
from ved_torch.layers.slicing import in_slices, sliceable

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

    def split(self, x_BPD: Tensor) -> Tensor:
        """(B, P, D) to (B * W, S, D), an image's windows side by side."""
        (down, right), size = self.counts, self.size
        x = pad_grid(x_BPD.unflatten(1, self.grid), size)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        x = x.reshape(x.shape[0], down, size, right, size, -1).transpose(2, 3)
        return x.reshape(-1, size * size, x.shape[-1])

    def join(self, x_WSD: Tensor) -> Tensor:
        """The inverse of `split`."""
        (down, right), size = self.counts, self.size
        x = x_WSD.reshape(-1, down, right, size, size, x_WSD.shape[-1]).transpose(2, 3)
        x = x.reshape(x.shape[0], down * size, right * size, -1)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        rows, columns = self.grid
        return x[:, :rows, :columns].flatten(1, 2)

    def mask(self, masked: float, like: Tensor) -> Tensor | None:
        """Bias (W, 1, S, S) of `masked` between tokens that only the shift brought into one window."""
        if not self.shift:
            return None
        rows, columns = (self.regions(count * self.size, like.device) for count in self.counts)
        regions_WS = (3 * rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        apart = regions_WS[:, None, :, None] != regions_WS[:, None, None, :]
        return like.new_zeros(apart.shape).masked_fill(apart, masked)

    def regions(self, length: int, device: torch.device) -> Tensor:
        """Along one axis, (windows, size): before the last window, in it, and what was moved round the edge."""
        place = torch.arange(length, device=device)
        region = (place >= length - self.size).int() + (place >= length - self.shift).int()
        return region.unflatten(0, (-1, self.size))


def attend_windows(
    attn: Attention, x_BPD: Tensor, windows: Windows, bias: Tensor, mask: Tensor | None, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Self-attention within windows; weights (B * W, N, S, S). `bias` (1, N, S, S); `mask`: `windows.mask`."""
    x_WSD = windows.split(x_BPD)
    linears = attn.q, attn.k, attn.v, attn.out
    if need_weights or not sliceable(x_WSD, linears):
        own = bias if mask is None else bias + mask.repeat(x_BPD.shape[0], 1, 1, 1)
        attended, weights = attn(x_WSD, attn.keys_values(x_WSD), own, need_weights)
        return windows.join(attended), weights

    def attend(some: slice) -> Tensor:
        x = x_WSD[some]
        own = bias if mask is None else bias + mask[places[some]]
        return attn(x, attn.keys_values(x), own)[0]

    count, tokens, width = x_WSD.shape
    places = torch.arange(count) % (1 if mask is None else len(mask))
    return windows.join(in_slices(attend, count, tokens * width, linears)), None


def pad_grid(x_BRCD: Tensor, multiple: int) -> Tensor:
    """Zeros behind the last row and column, up to the next `multiple`."""
    rows, columns = x_BRCD.shape[1:3]
    return F.pad(x_BRCD, (0, 0, 0, -columns % multiple, 0, -rows % multiple))


def merge_grid(x_BPD: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Four neighbours to one token, column by column: (B, P, D) to (B, P / 4, 4 D), and the new grid."""
    x = pad_grid(x_BPD.unflatten(1, grid), 2)
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(x.shape[0], rows, 2, columns, 2, -1).permute(0, 1, 3, 4, 2, 5)
    return x.reshape(x.shape[0], rows * columns, -1), (rows, columns)
