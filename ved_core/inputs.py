"""What a model is given, checked before anything is computed: shapes and dtypes always, values where they are known."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ved_core.errors import InputError

IGNORED = -100
"""Label of positions that the loss leaves out."""


class Given(NamedTuple):
    """An array argument of any library."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    """As NumPy's: f, i, u, b, or another letter for what is no number."""
    limits: Callable[[int | None], tuple[float, float]] | None = None
    """Its least and its largest value but for one, NaN where there is any; None where they are not to be looked at:
    inside a function that is being compiled, or where that would wait for a device."""

    def says(self, wanted: str) -> InputError:
        """The error that tells what was wanted instead."""
        return InputError(f"{self.name} should be {wanted}, got {self.dtype} of shape {self.shape}")


def check_pixels(x: Given, channels: int, largest: float) -> None:
    """Images (B, C, H, W), floating-point. `largest`: what the model's dtype can hold. Raises InputError."""
    if len(x.shape) != 4 or x.shape[1] != channels or 0 in x.shape:
        raise x.says(f"(B, {channels}, H, W) with at least one image")
    if x.kind != "f":
        raise x.says("floating-point, as an image processor makes it: Processor.pixel_values(images)")
    if x.limits is None:
        return
    low, high = x.limits(None)
    if not (-largest <= low and high <= largest):  # written so that NaN fails too
        what = "NaN" if math.isnan(low) or math.isnan(high) else f"values from {low:g} to {high:g}"
        raise InputError(f"{x.name} has {what}; give finite numbers, of at most {largest:.4g} as the model computes")


def check_vectors(x: Given, width: int) -> None:
    """Image tokens or embeddings (B, T, D), floating-point. Raises InputError."""
    if len(x.shape) != 3 or x.shape[2] != width or 0 in x.shape or x.kind != "f":
        raise x.says(f"floating-point of shape (B, T, {width})")


def check_ids(x: Given, vocabulary: int, ignored: int | None = None) -> None:
    """Tokens (B, T) of the vocabulary, or `ignored`. Raises InputError."""
    if len(x.shape) != 2 or 0 in x.shape or x.kind not in "iu":
        raise x.says("integers of shape (B, T) with at least one token")
    if x.limits is None:
        return
    low, high = x.limits(ignored)
    if low < 0 or high >= vocabulary:
        hint = "; replace the -100 of ignored labels by the padding id" if low == -100 and ignored is None else ""
        others = "" if ignored is None else f", or {ignored} where they do not count"
        raise InputError(
            f"{x.name} has ids from {int(low)} to {int(high)}, outside the vocabulary of {vocabulary} tokens "
            f"(0 to {vocabulary - 1}{others}){hint}"
        )


def check_mask(x: Given) -> None:
    """1 or True for what is there, 0 or False for padding; its shape is the decoder's affair. Raises InputError."""
    if len(x.shape) != 2 or x.kind not in "biuf":
        raise x.says("of shape (B, T)")
    if x.limits is not None and not {*(limits := x.limits(None))} <= {0, 1}:
        low, high = limits
        raise InputError(f"{x.name} has values from {low:g} to {high:g}; give 1 for tokens and 0 for padding")


def check_decoding(
    look: Callable[[str, Any], Given],
    vocabulary: int,
    width: int,
    longest: int | None,
    *,
    decoder_input_ids: Any = None,
    decoder_inputs_embeds: Any = None,
    decoder_attention_mask: Any = None,
    labels: Any = None,
    images: Given | None = None,
    behind: int = 0,
) -> None:
    """A decoder's arguments, before anything is computed. `look`: an argument as `Given`; `width`: of embeddings;
    `longest`: most tokens, None for any number; `images`: what the tokens are about, a row for each; `behind`: how many
    tokens of a cache they follow, of which the mask may be too. Raises InputError."""
    if decoder_input_ids is not None and decoder_inputs_embeds is not None:
        raise InputError("give either decoder_input_ids or decoder_inputs_embeds")
    tokens = None
    if decoder_input_ids is not None:
        tokens = look("decoder_input_ids", decoder_input_ids)
        check_ids(tokens, vocabulary)
    if decoder_inputs_embeds is not None:
        tokens = look("decoder_inputs_embeds", decoder_inputs_embeds)
        check_vectors(tokens, width)
    if labels is not None:
        wanted = look("labels", labels)
        check_ids(wanted, vocabulary, IGNORED)
        tokens = tokens or wanted
        if wanted.shape != tokens.shape[:2]:
            raise InputError(
                f"labels are {wanted.shape} for decoder inputs {tokens.shape[:2]}: give one for each token"
            )
    if tokens is None:
        raise InputError("give either decoder_input_ids or decoder_inputs_embeds")
    rows, new = tokens.shape[:2]
    if longest is not None and behind + new > longest:
        raise InputError(f"{behind + new} decoder tokens are more than the {longest} positions of the model")
    if decoder_attention_mask is not None:
        mask = look("decoder_attention_mask", decoder_attention_mask)
        check_mask(mask)
        if mask.shape[0] not in (1, rows) or mask.shape[1] not in (new, behind + new):
            raise InputError(f"{mask.name} is {mask.shape} for new tokens {(rows, new)}: give as many columns")
    if images is not None and images.shape[0] not in (1, rows):
        raise InputError(f"{rows} rows of decoder inputs do not fit {images.shape[0]} images")


def check_cache(batch_size: int, max_length: int, images: Given) -> None:
    """The size of a cache for images. Raises InputError."""
    if batch_size != images.shape[0]:
        raise InputError(f"batch_size = {batch_size}, but encoder_outputs are of {images.shape[0]} images")
    if isinstance(max_length, bool) or not hasattr(max_length, "__index__") or max_length < 1:
        raise InputError(f"max_length = {max_length!r} should be a whole number of at least 1")
