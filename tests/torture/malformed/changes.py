"""What the changes of every format share."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conversion.formats import FORMATS

Change = Callable[[Path, random.Random], None]
"""Makes one thing wrong with a folder."""
BAD_SIZES: tuple[Any, ...] = (-1, 2**31, 2**40, 2**63, 2**64, 1.5, "8", None, True, [2], {})
BAD_NAMES = ("../x", "/etc/passwd", "a\0b", "", "x" * 100_000, "a\\b", ".", "\u202e", "encoder")


def replaced(path: Path, data: bytes) -> None:
    """Another file in a file's place."""
    path.unlink()
    path.write_bytes(data)


def made(name: str, content: bytes) -> Change:
    """A file that was made by hand."""
    return lambda folder, rng: replaced(folder / FORMATS[name].weights, content)


def by_hand(name: str, table: list[tuple[Any, str]]) -> dict[str, Change]:
    """`tests.hostile`'s files."""
    return {f"by hand, {match}, {i}": made(name, data) for i, (data, match) in enumerate(table)}
