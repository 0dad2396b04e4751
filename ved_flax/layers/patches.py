"""Images to patch tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from ved_core.errors import InputError
from ved_flax.layers.build import Builder
from ved_flax.layers.products import dense


class Patches(nnx.Module):
    """A stride-sized convolution, computed as one matrix product over flattened patches."""

    def __init__(self, channels: int, size: tuple[int, int], width: int, make: Builder, *, pad: bool = False) -> None:
        """`pad`: fill a last patch up with zeros; without it, rows and columns that fill no patch are left out."""
        self.channels = channels
        self.size = size
        self.pad = pad
        self.kernel = make.parameter(channels * size[0] * size[1], width, init=make.init)
        self.bias = make.parameter(width)

    def __call__(self, pixels_BCHW: jax.Array) -> jax.Array:
        """(B, C, H, W) to (B, P, D), row by row. Raises InputError for another rank or number of channels."""
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.channels:
            raise InputError(f"pixel_values should be (B, {self.channels}, H, W), got {pixels_BCHW.shape}")
        batch, channels, height, width = pixels_BCHW.shape
        (high, wide), (rows, columns) = self.size, self.grid(height, width)
        x = pixels_BCHW[:, :, : rows * high, : columns * wide]
        if self.pad:
            missing = rows * high - x.shape[2], columns * wide - x.shape[3]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])))
        # Channels and a patch's rows go behind the columns, and the columns are cut where they lie: a TPU moves whole
        # columns at the speed of its memory, and single patches at half of it.
        x = x.reshape(batch, channels, rows, high, columns * wide).transpose(0, 2, 4, 1, 3)
        x = x.reshape(batch, rows * columns, wide, channels * high)
        kernel = self.kernel[...].astype(x.dtype).reshape(channels * high, wide, -1).swapaxes(0, 1)
        return dense(x, kernel) + self.bias[...].astype(x.dtype)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        if self.pad:
            height, width = height + self.size[0] - 1, width + self.size[1] - 1
        return height // self.size[0], width // self.size[1]
