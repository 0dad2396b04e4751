"""Stochastic depth (arXiv:1603.09382)."""

from torch import Tensor, nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Drops (B, P, D) for whole images, with probability `p` in training mode, and scales the others up for it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x_BPD: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x_BPD
        return x_BPD * F.dropout(x_BPD.new_ones(len(x_BPD), 1, 1), self.p)
