"""Malformed archives of PyTorch."""

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests import hostile
from tests.torture.malformed.changes import Change, by_hand, replaced


def with_archive(change: Callable[[dict[str, bytes], random.Random], None]) -> Change:
    """A zip archive whose members are changed."""

    def changed(folder: Path, rng: random.Random) -> None:
        path = folder / "pytorch_model.bin"
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members, rng)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        replaced(path, file.getvalue())

    return changed


def without_member(members: dict[str, bytes], rng: random.Random) -> None:
    needed = [name for name in members if "/data" in name]
    del members[rng.choice(needed)]


def shorter_member(members: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice([name for name in members if "/data" in name])
    members[name] = members[name][: rng.randrange(len(members[name]))]


def other_pickle(members: dict[str, bytes], rng: random.Random) -> None:
    name = next(name for name in members if name.endswith("data.pkl"))
    text = members[name]
    swaps = (
        (
            b"FloatStorage",
            rng.choice((b"ComplexFloatStorage", b"QInt8Storage", b"Storage", b"DoubleStorage", b"IntStorage")),
        ),
        (
            b"ctorch._utils\n_rebuild_tensor_v2",
            rng.choice((b"cos\nsystem", b"cbuiltins\neval", b"ctorch\nload", b"cnumpy\nx")),
        ),
        (b"J", b"\x8a\x09" + bytes(8)),
        (b"storage", b"module"),
        (b"cpu", b"cu" + b"d" * 100_000),
    )
    old, new = rng.choice(swaps)
    place = rng.choice([i for i in range(len(text)) if text.startswith(old, i)])
    members[name] = text[:place] + new + text[place + len(old) :]


def nested_archive(members: dict[str, bytes], rng: random.Random) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    root = next(iter(members)).partition("/")[0]
    place = rng.choice(("data.pkl", "data/0", "inner.zip"))
    if place == "inner.zip":
        members.clear()
    members[f"{root}/{place}"] = inner.getvalue()[: None if place != "data/0" else 8]


def big_endian(members: dict[str, bytes], rng: random.Random) -> None:
    name = next(name for name in members if name.endswith("byteorder"))
    members[name] = rng.choice((b"big", b"", b"LITTLE", b"\0"))


KINDS: dict[str, Change] = {
    **{each.__name__: with_archive(each) for each in (without_member, shorter_member, other_pickle, big_endian)},
    "nested_archive": with_archive(nested_archive),
    **by_hand("torch", hostile.TORCH),
}
