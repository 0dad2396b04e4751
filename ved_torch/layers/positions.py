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


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of each position (arXiv:1706.03762, 3.5, in tensor2tensor's order): (..., width) float32."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * -(math.log(10000) / (half - 1)))
    angles = positions[..., None].float() * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))
