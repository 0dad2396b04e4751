"""Malformed folders of Orbax."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.damage import files
from tests.torture.malformed.changes import BAD_NAMES, Change, replaced


def with_tree_metadata(change: Callable[[dict[str, Any], random.Random], Any]) -> Change:
    def changed(folder: Path, rng: random.Random) -> None:
        path = folder / "orbax_model" / "_METADATA"
        described = json.loads(path.read_bytes())
        made = change(described, rng)
        made = described if made is None else made
        replaced(path, made if isinstance(made, bytes) else json.dumps(made).encode())

    return changed


def orbax_key(described: dict[str, Any], rng: random.Random) -> None:
    entry = rng.choice(list(described["tree_metadata"].values()))
    keys = entry["key_metadata"]
    rng.choice(keys)["key"] = rng.choice((*BAD_NAMES[:-1], "..", "a/../../b", 5, None, [], {"a": 1}, "none"))


def orbax_value(described: dict[str, Any], rng: random.Random) -> Any:
    entry = rng.choice(list(described["tree_metadata"].values()))
    wrong: tuple[Any, ...] = (None, [], "x", 5, {"key": "a"}, [[]], [{}], [None])
    way = rng.randrange(4)
    if way == 0:
        entry["key_metadata"] = rng.choice(wrong)
    elif way == 1:
        described["tree_metadata"] = rng.choice((None, [], "x", {}, {"a": None}, {"a": {}}, {"a": {"key_metadata": 7}}))
    elif way == 2:
        described["use_zarr3"] = not described.get("use_zarr3")
    else:
        some = next(iter(described["tree_metadata"].items()))
        described["tree_metadata"] |= {f"{some[0]}{i}": copy.deepcopy(some[1]) for i in range(rng.choice((1, 30_000)))}
    return None


def orbax_text(_: dict[str, Any], rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"",
            b"{}",
            b"[]",
            b"null",
            b"[" * 100_000,
            b"\xff",
            b"NaN",
            b'{"tree_metadata":' * 2000,
            b"[0" + b",0" * 10**6 + b"]",
        )
    )


def orbax_file(folder: Path, rng: random.Random) -> None:
    inside = [path for path in files(folder) if "ocdbt" in path.name or "/d/" in path.as_posix()]
    path = rng.choice(sorted(inside, key=lambda path: path.stat().st_size))  # their names are new each time
    way = rng.randrange(4)
    path.unlink()
    if way == 0:
        path.symlink_to("/etc/passwd")
    elif way == 1:
        path.mkdir()
    elif way == 2:
        path.write_bytes(b"")


def orbax_zarr(folder: Path, rng: random.Random) -> None:
    """A tree of one array that is kept part by part, so that its description can be changed."""
    place = folder / "orbax_model"
    shutil.rmtree(place)
    (place / "parameters.x").mkdir(parents=True)
    key = [{"key": "parameters", "key_type": 2}, {"key": "x", "key_type": 2}]
    described = {"tree_metadata": {"('parameters', 'x')": {"key_metadata": key}}, "use_zarr3": False}
    (place / "_METADATA").write_text(json.dumps(described))
    zarr: dict[str, Any] = {"zarr_format": 2, "shape": [2, 3], "chunks": [2, 3], "dtype": "<f4", "order": "C"}
    zarr |= {"compressor": None, "filters": None, "fill_value": None, "dimension_separator": "."}
    field = rng.choice(("shape", "chunks", "dtype", "compressor", "filters", "order", "zarr_format"))
    kinds = ("|V8", "|S4", "<M8[s]", "|O", ">f4x", "", 5, [["a", "<f4"], ["b", "<i4"]], "<c8", None)
    sizes = ([2**40, 2**20], [-2, 3], [2**63, 1], [1.5, 2], "x", None, [2], [0, 0, 0], [1] * 64, [2**31, 2**31])
    packed = ({"id": "none"}, {"id": "blosc", "cname": "x"}, {"id": "zlib", "level": 99}, 5, {"id": "bz2"}, [])
    values: dict[str, tuple[Any, ...]] = {"dtype": kinds, "shape": sizes, "chunks": sizes, "compressor": packed}
    zarr[field] = rng.choice(values.get(field, ("x", 7, {}, [{"id": "delta"}], -1)))
    (place / "parameters.x" / ".zarray").write_text(json.dumps(zarr))
    (place / "parameters.x" / "0.0").write_bytes(np.ones((2, 3), np.float32).tobytes())


KINDS: dict[str, Change] = {
    **{each.__name__: with_tree_metadata(each) for each in (orbax_key, orbax_value, orbax_text)},
    "orbax_file": orbax_file,
    "orbax_zarr": orbax_zarr,
    "orbax_zarr again": orbax_zarr,
}
