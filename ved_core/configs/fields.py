"""Validated dataclass fields: each helper gives a default and the check that values of the field must pass."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)
"""Names of transformers' ACT2FN that both frameworks implement (`layers/activations.py`)."""

LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 1000

Check = Callable[[Any], str | None]
"""Returns what the value should have been, or None where it is fine."""


def checked(default: Any, check: Check) -> Any:
    """A dataclass field with a check; a list or dict default is copied for each instance."""
    metadata = {"check": check}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_int(value) and 1 <= value <= LARGEST_SIZE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_token(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= LARGEST_SIZE


def size(default: int | None, *, optional: bool = False) -> Any:
    """A whole number from 1 to 2**31 - 1."""
    wanted = "a whole number from 1 to 2147483647" + (" or null" if optional else "")
    return checked(default, lambda v: None if _is_size(v) or (optional and v is None) else wanted)


def depth(default: int) -> Any:
    """A number of layers, from 1 to MOST_LAYERS: each costs time and memory before any weight is read."""
    wanted = f"a whole number from 1 to {MOST_LAYERS}"
    return checked(default, lambda v: None if _is_size(v) and v <= MOST_LAYERS else wanted)


def size_or_pair(default: int | list[int]) -> Any:
    """One size for both sides, or [height, width]."""

    def check(value: Any) -> str | None:
        pair = isinstance(value, list | tuple) and len(value) == 2 and all(_is_size(v) for v in value)
        return None if pair or _is_size(value) else "a whole number of at least 1, or [height, width]"

    return checked(default, check)


def sizes(default: list[int], *, least: int = 1) -> Any:
    """A list of at least one whole number, each from `least` to 2**31 - 1."""

    def check(value: Any) -> str | None:
        fine = isinstance(value, list | tuple) and len(value) > 0
        fine = fine and all(_is_int(v) and least <= v <= LARGEST_SIZE for v in value)
        return None if fine else f"a list of whole numbers of at least {least}"

    return checked(default, check)


def probability(default: float) -> Any:
    """A number from 0 to 1."""
    return checked(default, lambda v: None if _is_number(v) and 0 <= v <= 1 else "a number from 0 to 1")


def positive(default: float) -> Any:
    """A finite number above 0."""
    return checked(default, lambda v: None if _is_number(v) and v > 0 else "a number above 0")


def non_negative(default: float) -> Any:
    """A finite number of at least 0."""
    return checked(default, lambda v: None if _is_number(v) and v >= 0 else "a number of at least 0")


def flag(default: bool) -> Any:
    """True or False."""
    return checked(default, lambda v: None if isinstance(v, bool) else "true or false")


def token(default: int | None) -> Any:
    """A token id, or None where the model has no such token."""
    return checked(default, lambda v: None if v is None or _is_token(v) else "a token id of at least 0, or null")


def tokens(default: int | None) -> Any:
    """A token id, a list of them, or None."""

    def check(value: Any) -> str | None:
        several = isinstance(value, list | tuple) and len(value) > 0 and all(_is_token(v) for v in value)
        return None if value is None or _is_token(value) or several else "a token id, a list of token ids, or null"

    return checked(default, check)


def activation(default: str) -> Any:
    """The name of an activation function."""
    wanted = f"one of {', '.join(ACTIVATIONS)}"
    return checked(default, lambda v: None if v in ACTIVATIONS else wanted)


def constant(only: str) -> Any:
    """The one value that is implemented, of a field that could have others."""
    return checked(only, lambda v: None if v == only else f"{only!r}, the only kind that is implemented")


def as_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """`size_or_pair` as (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
