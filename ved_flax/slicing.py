"""A batch of images in slices, on CPUs."""

from collections.abc import Callable

import jax

from ved_core.slicing import slice_size


def in_slices(encode: Callable[[jax.Array], jax.Array], pixels_BCHW: jax.Array) -> jax.Array:
    """encode(pixels), on CPUs a few images at a time: they do not see each other. XLA also fuses norms and products of
    thousands of rows into slow ones."""
    batch, *image = pixels_BCHW.shape
    if not isinstance(batch, int):  # an exported program's, which is known when it is called
        return encode(pixels_BCHW)
    size = slice_size(image)
    if batch <= size:
        return encode(pixels_BCHW)

    def sliced(pixels_BCHW: jax.Array) -> jax.Array:
        return jax.lax.map(lambda pixels_CHW: encode(pixels_CHW[None])[0], pixels_BCHW, batch_size=size)

    return jax.lax.platform_dependent(pixels_BCHW, cpu=sliced, default=encode)
