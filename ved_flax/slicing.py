"""A batch of images in slices, on CPUs."""

import math
from collections.abc import Callable

import jax

AT_ONCE = 1_250_000
"""Pixel values that a CPU encodes at a time: 8 images of 224 x 224, 2 of 384 x 384, one of a page. What more of
them make falls out of its caches, and XLA fuses norms and products of thousands of rows into slow ones."""


def in_slices(encode: Callable[[jax.Array], jax.Array], pixels_BCHW: jax.Array) -> jax.Array:
    """encode(pixels), on CPUs at most AT_ONCE numbers at a time: images do not see each other."""
    batch, *image = pixels_BCHW.shape
    if not isinstance(batch, int):  # an exported program's, which is known when it is called
        return encode(pixels_BCHW)
    slice_size = max(1, AT_ONCE // max(1, math.prod(image)))
    if batch <= slice_size:
        return encode(pixels_BCHW)

    def sliced(pixels_BCHW: jax.Array) -> jax.Array:
        return jax.lax.map(lambda pixels_CHW: encode(pixels_CHW[None])[0], pixels_BCHW, batch_size=slice_size)

    return jax.lax.platform_dependent(pixels_BCHW, cpu=sliced, default=encode)
