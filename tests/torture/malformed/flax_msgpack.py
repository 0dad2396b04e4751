"""Malformed msgpack files of Flax."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from tests import hostile
from tests.torture.malformed.changes import BAD_NAMES, BAD_SIZES, Change, by_hand, replaced


def with_tree(change: Callable[[dict[str, Any], random.Random], Any]) -> Change:
    """A msgpack file whose tree is changed, or made anew where `change` returns one, as bytes or as a value."""

    def changed(folder: Path, rng: random.Random) -> None:
        path = folder / "flax_model.msgpack"
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=msgpack.ExtType)
        made = change(tree, rng)
        made = tree if made is None else made
        replaced(path, made if isinstance(made, bytes) else msgpack.packb(made))

    return changed


def leaf(tree: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """Where one of a tree's arrays is."""
    while True:
        name = rng.choice(list(tree))
        if not isinstance(tree[name], dict):
            return tree, name
        tree = tree[name]


def array_of(shape: Any, kind: Any, data: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, kind, data)))


def flax_array(tree: dict[str, Any], rng: random.Random) -> None:
    inside, name = leaf(tree, rng)
    sizes, kind, data = msgpack.unpackb(inside[name].data)
    kinds = (
        "object",
        "V4",
        "S4",
        "U1",
        "M8[s]",
        "<f4",
        "f4,f4",
        "complex64",
        "longdouble",
        "void",
        "",
        None,
        7,
        b"float32",
    )
    inside[name] = rng.choice(
        (
            *(array_of(sizes, other, data) for other in (*kinds, "int32", "uint32", "float64", "float16")),
            *(array_of([size, *sizes[1:]], kind, data) for size in BAD_SIZES if size != 2**64),
            *(array_of(other, kind, data) for other in ([], [0, 2**63 - 1], [1] * 100, "4", None, {}, [len(data)])),
            *(array_of(sizes, kind, other) for other in (b"", data[:-1], data + b"1", "x" * len(data), None)),
            *(array_of(sizes, kind, data, code) for code in (0, 2, 3, 4, 127)),
            *(msgpack.ExtType(1, other) for other in (b"", b"\x93", b"\xdd\xff\xff\xff\xff", b"\x90", b"\xc0" * 9)),
        )
    )
    if inside[name] == array_of(sizes, kind, data, 3):  # a scalar is an array too
        inside[name] = None


def flax_value(tree: dict[str, Any], rng: random.Random) -> None:
    inside, name = leaf(tree, rng)
    inside[name] = rng.choice(
        (None, 1, -1, 2**63, 1.5, float("nan"), "x" * 10_000, b"x" * 10_000, [1, 2], True, {"a": {}}, {})
    )


def flax_name(tree: dict[str, Any], rng: random.Random) -> None:
    inside, name = leaf(tree, rng)
    inside[rng.choice((*BAD_NAMES, 7, None, True, b"x", 1.5))] = inside.pop(name)


def flax_chunks(tree: dict[str, Any], rng: random.Random) -> None:
    inside, name = leaf(tree, rng)
    _, kind, data = msgpack.unpackb(inside[name].data)
    flat = array_of([len(data) // 4], kind, data)
    shapes: tuple[Any, ...] = (
        *({"0": size} for size in BAD_SIZES if size != 2**64),
        {"0": 0, "1": 2**40},
        {"1": 1},
        {},
        [],
        5,
    )
    chunked = {"__msgpack_chunked_array__": True, "shape": rng.choice(shapes), "chunks": {"0": flat}}
    if rng.random() < 0.3:
        chunked |= {
            "shape": {"0": len(data) // 4},
            "chunks": rng.choice(({}, [], {"1": flat}, {"0": "x"}, {"0": {}}, None)),
        }
    inside[name] = chunked


def flax_bytes(_: dict[str, Any], rng: random.Random) -> bytes:
    deep = rng.choice((65, 1000, 100_000))
    nested = (b"\x81\xa1a" * deep + b"\xc0", b"\x91" * deep + b"\xc0", b"\x81" * deep, b"\xdf\xff\xff\xff\xff" * deep)
    return rng.choice(
        (*nested, b"\xdf\x7f\xff\xff\xff", b"\x81\xdb\xff\xff\xff\xff", b"\x81\xa1a\xc9\xff\xff\xff\xff\x01")
    )


KINDS: dict[str, Change] = {
    **{each.__name__: with_tree(each) for each in (flax_array, flax_value, flax_name, flax_chunks, flax_bytes)},
    **by_hand("flax", hostile.FLAX),
}
