"""Attention biases by the relative position of two tokens, (1, N, S, S)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ved_torch.layers.build import Builder
from ved_torch.layers.positions import resize_grid


def spread(table_EN: Tensor, rows: int, columns: int) -> Tensor:
    """A table of all offsets on a grid, row by row, for every pair of its cells, heads first: (1, N, S, S)."""
    table_RCN = table_EN.unflatten(0, (2 * rows - 1, 2 * columns - 1))
    # Slices of the table, one for each cell: what another cell's offset is to this one runs backwards through them.
    pairs = table_RCN.unfold(0, rows, 1).unfold(1, columns, 1).flip(3, 4)
    return pairs.permute(2, 0, 1, 3, 4).reshape(1, -1, rows * columns, rows * columns)


class WindowBias(nn.Module):
    """A learned bias for every offset within a square window."""

    def __init__(self, window: int, heads: int, make: Builder) -> None:
        super().__init__()
        self.span = 2 * window - 1
        self.table = make.parameter(self.span**2, heads)

    def forward(self, window: int) -> Tensor:
        """For windows no larger than the table's."""
        edge = (self.span + 1) // 2 - window
        table = self.table.unflatten(0, (self.span, self.span))
        table = table[edge : self.span - edge, edge : self.span - edge]
        return spread(table.flatten(0, 1), window, window)


class GridBias(nn.Module):
    """A learned bias for every offset on a grid, with CLS before it; resized for other grids."""

    def __init__(self, grid: tuple[int, int], heads: int, make: Builder) -> None:
        super().__init__()
        self.spans = (2 * grid[0] - 1, 2 * grid[1] - 1)
        self.table = make.parameter(self.spans[0] * self.spans[1] + 3, heads)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        offsets = self.spans[0] * self.spans[1]
        # Read as columns by rows, even on the table's own grid: transformers does, so a grid that is not square was
        # trained so.
        table = resize_grid(self.table[:offsets], self.spans[::-1], (2 * grid[0] - 1, 2 * grid[1] - 1), "bilinear")
        patches = spread(table, *grid)
        seeing, seen, both = self.table[offsets:, None, :, None, None]
        patches = torch.cat([seen.expand(-1, -1, patches.shape[2], -1), patches], dim=3)
        cls = torch.cat([both, seeing.expand(-1, -1, -1, patches.shape[2])], dim=3)
        return torch.cat([cls, patches], dim=2)


class ContinuousBias(nn.Module):
    """A bias that a small network computes from each offset within a square window (arXiv:2111.09883, 3.3)."""

    HIDDEN = 512
    LARGEST = 16.0

    def __init__(self, pretrained: int, heads: int, make: Builder) -> None:
        """`pretrained`: the window that offsets are counted in, 0 for each window itself."""
        super().__init__()
        self.pretrained = pretrained
        self.up = make.linear(2, self.HIDDEN)
        self.down = make.linear(self.HIDDEN, heads, bias=False)

    def forward(self, window: int) -> Tensor:
        table = self.down(F.relu(self.up(self.offsets(window))))
        return spread(self.LARGEST * table.sigmoid(), window, window)

    def offsets(self, window: int) -> Tensor:
        """((2 * window - 1)**2, 2): all offsets in a window, row by row, on a logarithmic scale."""
        weight = self.up.weight
        steps = torch.arange(1 - window, window, dtype=torch.float32, device=weight.device)
        steps = steps / max((self.pretrained or window) - 1, 1) * 8
        scaled = (steps.sign() * (steps.abs() + 1).log2() / math.log2(8)).to(weight.dtype)
        return torch.cartesian_prod(scaled, scaled)
