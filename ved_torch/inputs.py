"""PyTorch's tensors and NumPy's arrays as `ved_core.inputs` looks at them."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ved_core.errors import InputError
from ved_core.inputs import Given, check_decoding, check_pixels
from ved_torch.decoders.base import Decoder
from ved_torch.encoders.base import Encoder
from ved_torch.layers.cache import Cache


def given(name: str, value: Tensor, *, wait: bool = False) -> Given:
    """An argument, for the checks. Values in the host's memory are looked at, others if `wait`; those of batches that
    torch.func makes have none."""
    dtype = str(value.dtype).removeprefix("torch.")
    kind = "f" if value.is_floating_point() else "c" if value.is_complex() else "b" if dtype == "bool" else "i"
    here = value.device.type == "cpu" or (wait and value.device.type != "meta")
    known = here and not torch.compiler.is_compiling() and torch.func.debug_unwrap(value, recurse=False) is value
    return Given(name, tuple(value.shape), dtype, kind, partial(_range, value) if known else None)


def tensor(name: str, value: Any, device: torch.device) -> Tensor:
    """A tensor on a device of whatever torch can make one of. Raises InputError."""
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} should be an array, got {type(value).__name__}, which is none: {error}") from error


def wide(value: Tensor | None) -> Tensor | None:
    """Integers as int64, of which alone torch can look up vectors, but for int32."""
    narrow = value is not None and given("", value).kind == "i" and value.dtype != torch.int32
    return value.long() if narrow and value is not None else value


def check_images(value: Tensor, encoder: Encoder, interpolate_pos_encoding: bool, *, wait: bool = False) -> None:
    """Raise InputError for what are no images (B, C, H, W) that an encoder can take."""
    if torch.compiler.is_compiling():
        return
    x = given("pixel_values", value, wait=wait)
    check_pixels(x, encoder.config.num_channels, torch.finfo(next(encoder.parameters()).dtype).max)
    encoder.check_size(x.shape[2], x.shape[3], interpolate_pos_encoding)


def check_tokens(decoder: Decoder, cache: Cache | None, images: Given | None, **arguments: Any) -> None:
    """Raise InputError for what a decoder cannot be given."""
    if torch.compiler.is_compiling():
        return
    behind = 0 if cache is None else cache.index
    width, longest = decoder.tokens.weight.shape[1], decoder.max_positions
    check_decoding(given, decoder.config.vocab_size, width, longest, images=images, behind=behind, **arguments)


def _range(value: Tensor, ignored: int | None) -> tuple[float, float]:
    if ignored is not None:
        value = value[value != ignored]
    if value.numel() == 0:
        return 0, 0
    low, high = torch.aminmax(value.detach())
    return float(low), float(high)
