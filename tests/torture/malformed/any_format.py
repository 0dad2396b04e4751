"""What can be wrong with the files of any format."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from conversion.formats import FORMATS
from tests.damage import damaged, files
from tests.torture.malformed.changes import Change, replaced


def one(folder: Path, rng: random.Random) -> Path:
    """One of a folder's files of weights."""
    return rng.choice(files(folder))


def at_random(folder: Path, rng: random.Random) -> None:
    path = one(folder, rng)
    replaced(path, damaged(path.read_bytes(), rng))


def truncated(folder: Path, rng: random.Random) -> None:
    path = max(files(folder), key=lambda path: path.stat().st_size)
    os.truncate(path, rng.randrange(path.stat().st_size))


def flipped(folder: Path, rng: random.Random) -> None:
    path = one(folder, rng)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    replaced(path, bytes(data))


def something_else(folder: Path, rng: random.Random) -> None:
    page = b"<!DOCTYPE html><html><body>404</body></html>\n"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    path = max(files(folder), key=lambda path: path.stat().st_size)
    replaced(path, rng.choice((b"", b"\0", page, pointer, b"\0" * 10_000, b"PK\x05\x06" + bytes(18), b"\x80\x02N.")))


def no_file(folder: Path, rng: random.Random) -> None:
    path = max(files(folder), key=lambda path: path.stat().st_size)
    path.unlink()
    rng.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path), lambda: path.symlink_to("none")))()


def index_instead(folder: Path, rng: random.Random) -> None:
    each = next(each for each in FORMATS.values() if (folder / each.weights).exists())
    if (folder / each.weights).is_dir():
        shutil.rmtree(folder / each.weights)
    else:
        (folder / each.weights).rename(folder / each.shard(1, 1))
    shards: Any = rng.choice(
        (
            *({}, [], None, {"a": 5}, {"a": None}, {"a": "\ud800"}, {"a": "x" * 5000}, {"a": ["b"]}, {"a": {"b": "c"}}),
            *({"a": place} for place in ("../a", "/etc/passwd", "a\\..\\b", "C:\\a", "a\0", ".", "..", "", "b/c")),
            *({"a": each.shard(1, 1)}, {str(i): "a" for i in range(100_000)}),
        )
    )
    (folder / each.index).write_text(json.dumps({"weight_map": shards}))


ANY: dict[str, Change] = {
    "random damage": at_random,
    "random damage again": at_random,
    "random bit": flipped,
    "truncated": truncated,
    "another file": something_else,
    "no file": no_file,
    "a bad index": index_instead,
}
