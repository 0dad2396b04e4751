"""A batch of images in slices, on CPUs and TPUs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ved_core import slicing
from ved_flax.layers.slicing import allowing_slices
from ved_flax.platforms import choose, devices_of, traced_for

Encode = Callable[[jax.Array], jax.Array]


def in_slices(encode: Encode, pixels_BCHW: jax.Array) -> jax.Array:
    """encode(pixels), a few images of each device at a time: they do not see each other, and what few images make stays
    in a CPU's caches or in a TPU core's own memory. On CPUs XLA also fuses norms and products of thousands of rows into
    slow ones. Nothing is learned of this."""
    batch, *image = pixels_BCHW.shape
    if not isinstance(batch, int):  # an exported program's, which is known when it is called
        return encode(pixels_BCHW)
    devices = devices_of(pixels_BCHW)
    if devices == 1:
        encode = allowing_slices(encode)
    platforms = {}
    for platform, values in (("cpu", slicing.AT_ONCE), ("tpu", slicing.AT_ONCE_TPU)):
        size = size_for(batch, slicing.slice_size(image, values), devices)
        if size < batch:
            platforms[platform] = traced_for(platform, partial(encode_by, encode, size))
    return choose(pixels_BCHW, **platforms, default=encode) if platforms else encode(pixels_BCHW)


def size_for(batch: int, most: int, devices: int) -> int:
    """How many images of a batch to encode at a time, of each device at most `most`; all, where slices would not take
    as many of each."""
    if batch <= most * devices:
        return batch
    own, left = divmod(batch, devices)
    size = slicing.even(own, most)
    return batch if devices > 1 and (left or own % size) else size * devices


def encode_by(encode: Encode, size: int, pixels_BCHW: jax.Array) -> jax.Array:
    """encode(pixels), `size` images at a time, and by themselves those that are left over."""
    batch, *image = pixels_BCHW.shape
    whole = batch - batch % size
    # A device's images lie one behind the other: each slice takes some of every device's, so that none has to leave it.
    cut = pixels_BCHW[:whole].reshape(size, -1, *image).swapaxes(0, 1)
    encoded = jax.lax.map(encode, cut).swapaxes(0, 1)
    encoded = encoded.reshape(whole, *encoded.shape[2:])
    return encoded if whole == batch else jnp.concatenate([encoded, encode(pixels_BCHW[whole:])])
