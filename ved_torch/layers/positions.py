"""Position tables: resized for other image sizes, or computed from sines."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_grid(
    table_GD: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic", *, antialias: bool = False
) -> Tensor:
    """A table for the cells of a grid, (rows * columns, D), resized to another grid, in float32."""
    if old == new:
        return table_GD
    grid_1DRC = table_GD.float().unflatten(0, old).permute(2, 0, 1)[None]
    resized = F.interpolate(grid_1DRC, size=new, mode=mode, align_corners=False, antialias=antialias)
    return resized[0].flatten(1).T.to(table_GD.dtype)


def positions_beside_padding(
    input_ids: Tensor | None, tokens: int, index: int, pad: int, device: torch.device
) -> Tensor:
    """Positions (B, T) as fairseq counts them, leaving out padding. What stands before `index` is counted in, padding
    too, as in transformers. Without ids nothing is padding, and the result is (1, T)."""
    real = torch.ones(1, tokens, dtype=torch.bool, device=device) if input_ids is None else input_ids != pad
    return real.cumsum(dim=1) + index - 1


def rows_behind_padding(input_ids: Tensor | None, positions: Tensor, pad: int) -> Tensor:
    """Rows (B, T) of fairseq's table of positions: from pad + 1 on, and `pad` for padding."""
    rows = positions + 1 + pad
    return rows if input_ids is None else torch.where(input_ids != pad, rows, pad)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of each position (arXiv:1706.03762, 3.5, in tensor2tensor's order): (..., width) float32."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * -(math.log(10000) / (half - 1)))
    angles = positions[..., None].float() * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))


def interleaved_sinusoids(entries: int, width: int) -> Tensor:
    """Sines in even columns, cosines in odd ones (arXiv:1706.03762, 3.5, as written there): (entries, width)."""
    columns = torch.arange(width, dtype=torch.float64, device="cpu")
    rows = torch.arange(entries, dtype=torch.float64, device="cpu")
    angles = rows[:, None] / 10000 ** (2 * (columns // 2) / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).float()
