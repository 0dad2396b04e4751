"""Malformed safetensors files, most of them by their headers."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import hostile
from tests.torture.malformed.changes import BAD_NAMES, BAD_SIZES, Change, by_hand, replaced


def with_header(change: Callable[[dict[str, Any], random.Random], Any]) -> Change:
    """A file whose header is changed, or made anew where `change` returns one, as bytes or as a value."""

    def changed(folder: Path, rng: random.Random) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        made = change(header, rng)
        made = header if made is None else made
        text = made if isinstance(made, bytes) else json.dumps(made).encode()
        replaced(path, struct.pack("<Q", len(text)) + text + data[8 + size :])

    return changed


def entry_of(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    return header[rng.choice([name for name in header if name != "__metadata__"])]


def header_length(folder: Path, rng: random.Random) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    wrong = rng.choice((0, 1, 7, size - 1, size + 1, len(data), len(data) - 8, 2**32, 2**63, 2**64 - 1))
    replaced(path, struct.pack("<Q", wrong) + data[8:])


def shape(header: dict[str, Any], rng: random.Random) -> None:
    entry = entry_of(header, rng)
    bombs = ([2**40, 2**40], [0, 2**63], [1] * 100, [1] * 10_000, "4", None, {"a": 1}, [[2]], *([n] for n in BAD_SIZES))
    entry["shape"] = rng.choice(bombs)


def turned(header: dict[str, Any], rng: random.Random) -> None:
    wide = [entry for entry in header.values() if len(set(entry.get("shape", ()))) > 1]
    entry = rng.choice(wide)
    entry["shape"] = rng.choice((entry["shape"][::-1], [1, *entry["shape"]], [int(np.prod(entry["shape"]))]))


def offsets(header: dict[str, Any], rng: random.Random) -> None:
    entry = entry_of(header, rng)
    first, last = entry["data_offsets"]
    other = entry_of(header, rng)["data_offsets"]
    if other == entry["data_offsets"]:
        other = [0, 0]
    ways = ([last, first], [first, last - 1], [first + 4, last + 4], other, [first], [first, last, last], "x", None)
    entry["data_offsets"] = rng.choice(
        (*ways, [-last, last], [first, 2**62], [first, 2**64], [float(first), last + 0.5])
    )


def dtype(header: dict[str, Any], rng: random.Random) -> None:
    kinds = (
        "F64",
        "F16",
        "I32",
        "U32",
        "BOOL",
        "F128",
        "f32",
        "O",
        "V4",
        "",
        4,
        None,
        ["F32"],
        "C64",
        "F8_E8M0",
        "I64",
    )
    entry_of(header, rng)["dtype"] = rng.choice(kinds)


def renamed(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice([name for name in header if name != "__metadata__"])
    header[rng.choice(BAD_NAMES)] = header.pop(name)


def missing(header: dict[str, Any], rng: random.Random) -> None:
    del header[rng.choice([name for name in header if name != "__metadata__"])]


def twice(header: dict[str, Any], rng: random.Random) -> bytes:
    name = rng.choice([name for name in header if name != "__metadata__"])
    text = json.dumps(header)
    return f"{text[:-1]}, {json.dumps(name)}: {json.dumps(entry_of(header, rng))}}}".encode()


def metadata(header: dict[str, Any], rng: random.Random) -> None:
    ways: tuple[Any, ...] = (
        {"format": 1},
        [],
        "pt",
        {"a": {"b": "c"}},
        {"a": None},
        {"format": "tf"},
        {"format": "flax"},
    )
    header["__metadata__"] = rng.choice(ways)


def other_header(_: dict[str, Any], rng: random.Random) -> bytes:
    many = b",".join(b'"%d":""' % i for i in range(900_000))
    ways = (
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"{}",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"null",
        b"{} x",
        b" " * 99,
    )
    return rng.choice((*ways, b'{"__metadata__":{' + many + b"}}"))


KINDS: dict[str, Change] = {
    "header's length": header_length,
    **{f"header's {change.__name__}": with_header(change) for change in (shape, turned, offsets, dtype, renamed)},
    **{f"header's {change.__name__}": with_header(change) for change in (missing, twice, metadata, other_header)},
    **by_hand("safetensors", hostile.SAFETENSORS),
}
