"""Images to patch tokens."""

from typing import Any

from torch import Tensor, nn

from ved_torch.layers.build import Builder


class Patches(nn.Conv2d):
    """A stride-sized convolution."""

    def __init__(self, channels: int, size: tuple[int, int], width: int, **kwargs: Any) -> None:
        super().__init__(channels, width, kernel_size=size, stride=size, **kwargs)
        self.size = size

    @classmethod
    def build(cls, channels: int, size: tuple[int, int], width: int, make: Builder) -> "Patches":
        """Initialised by the builder."""
        return make.leaf(cls, channels, size, width)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, P, D), row by row; rows and columns that fill no patch are left out.

        Raises ValueError for another rank or number of channels.
        """
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.in_channels:
            raise ValueError(f"pixel_values should be (B, {self.in_channels}, H, W), got {tuple(pixels_BCHW.shape)}")
        return super().forward(pixels_BCHW.to(self.weight.dtype)).flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return height // self.size[0], width // self.size[1]
