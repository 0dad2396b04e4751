"""Images to patch tokens."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ved_core.errors import InputError
from ved_torch.layers.build import Builder


class Patches(nn.Conv2d):
    """A stride-sized convolution."""

    def __init__(self, channels: int, size: tuple[int, int], width: int, *, pad: bool = False, **kwargs: Any) -> None:
        """`pad`: fill a last patch up with zeros; without it, rows and columns that fill no patch are left out."""
        super().__init__(channels, width, kernel_size=size, stride=size, **kwargs)
        self.size = size
        self.pad = pad

    @classmethod
    def build(cls, channels: int, size: tuple[int, int], width: int, make: Builder, *, pad: bool = False) -> "Patches":
        """Initialised by the builder."""
        return make.leaf(cls, channels, size, width, pad=pad)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, P, D), row by row. Raises InputError for another rank or number of channels."""
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.in_channels:
            raise InputError(f"pixel_values should be (B, {self.in_channels}, H, W), got {tuple(pixels_BCHW.shape)}")
        x = pixels_BCHW.to(self.weight.dtype)
        if self.pad:
            x = F.pad(x, (0, -x.shape[3] % self.size[1], 0, -x.shape[2] % self.size[0]))
        return super().forward(x).flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        if self.pad:
            height, width = height + self.size[0] - 1, width + self.size[1] - 1
        return height // self.size[0], width // self.size[1]
