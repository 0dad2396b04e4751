"""JAX's and NumPy's arrays as `ved_core.inputs` looks at them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ved_core.errors import InputError
from ved_core.inputs import Given, check_decoding, check_pixels
from ved_flax.decoders.base import Decoder
from ved_flax.encoders.base import Encoder
from ved_flax.layers.cache import Cache

KINDS = {"bfloat16": "f", "float8_e4m3fn": "f", "float8_e5m2": "f"}
"""Of dtypes that NumPy does not know."""


def given(name: str, value: Any, *, wait: bool = False) -> Given:
    """An argument, for the checks. Values in the host's memory are looked at, others if `wait`; those that are being
    traced have none. Raises InputError for what is no array."""
    array = value if isinstance(value, jax.Array) else host(name, value)
    dtype = str(array.dtype)
    return Given(name, array.shape, dtype, KINDS.get(dtype, getattr(array.dtype, "kind", "V")), _limits(array, wait))


def host(name: str, value: Any) -> np.ndarray:
    """NumPy's array of what is no JAX array. Raises InputError."""
    try:
        array = np.asarray(value)
    except Exception as error:  # each array library has its own errors: ragged lists, GPU tensors, ...
        raise InputError(f"{name} should be an array, got {type(value).__name__}, which is none: {error}") from error
    if array.dtype.kind in "OUSM":
        raise InputError(f"{name} should be an array of numbers, got {type(value).__name__}")
    return array


def pixels(
    value: Any, encoder: Encoder, dtype: Any, interpolate_pos_encoding: bool, *, wait: bool = False
) -> jax.Array | np.ndarray:
    """Images (B, C, H, W) that an encoder can take, as an array. Raises InputError."""
    x = given("pixel_values", value, wait=wait)
    check_pixels(x, encoder.config.num_channels, float(jnp.finfo(dtype).max))
    encoder.check_size(x.shape[2], x.shape[3], interpolate_pos_encoding)
    return value if isinstance(value, jax.Array) else np.asarray(value)


def check_tokens(decoder: Decoder, cache: Cache | None, images: Given, **arguments: Any) -> None:
    """Raise InputError for what a decoder cannot be given, and where a cache has no room for it."""
    width = decoder.tokens.embedding.shape[1]
    longest = decoder.max_positions if cache is None else None
    check_decoding(given, decoder.config.vocab_size, width, longest, images=images, **arguments)
    if cache is not None and not isinstance(cache.index, jax.core.Tracer):
        ids = arguments["decoder_input_ids"]
        new = np.shape(arguments["decoder_inputs_embeds"] if ids is None else ids)[1]
        if (filled := int(cache.index)) + new > cache.length:
            raise InputError(
                f"the cache has {cache.length} positions, {filled} of them filled: no room for {new} new tokens; "
                "make it longer, model.init_cache(batch_size, max_length, encoder_outputs)"
            )


def _limits(array: jax.Array | np.ndarray, wait: bool) -> Any:
    if isinstance(array, jax.core.Tracer) or jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return None
    here = isinstance(array, np.ndarray) or (
        array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())
    )
    return partial(_range, np.asarray(array) if here else array) if here or wait else None


def _range(array: jax.Array | np.ndarray, ignored: int | None) -> tuple[float, float]:
    if ignored is not None:
        array = np.asarray(array)
        array = array[array != ignored]
    return (float(array.min()), float(array.max())) if array.size else (0, 0)
