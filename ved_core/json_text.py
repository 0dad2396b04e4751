"""JSON from strangers: a few bytes may stand for much memory, and a file may be no file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST = 16 * 2**20
MOST_VALUES = 2**18
"""How many values a text may have; each may take a hundred bytes."""


DEEPEST = 100
"""How many values may be inside one another: what walks through them is recursive."""


def parse(data: bytes | str, most: int = MOST_VALUES) -> Any:
    """The value that a JSON text stands for. Raises ValueError where it is none, too deep, or has more than `most`
    values."""
    text = data.decode() if isinstance(data, bytes) else data
    if sum(map(text.count, ",[{")) > most:
        raise ValueError(f"it has more than {most} values")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read(path: Path, most: int = MOST_VALUES) -> Any:
    """The value in a file, as `parse`. Raises OSError where there is none, ValueError too where it is no regular file
    (a pipe would be waited for) or larger than LARGEST."""
    if not path.is_file() and path.exists():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    return parse(data, most)
