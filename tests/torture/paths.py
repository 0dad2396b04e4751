"""Names and links that lead out of a checkpoint's folder: nothing there is opened, changed or removed.

What they lead to is a whole checkpoint, so that following them would look like success.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conversion.convert import convert
from tests.cases import FIXTURES, READER
from tests.torture import Attack, Outcome
from tests.torture.worker import Worker
from ved_core.digests import FILE as DIGESTS

SECRET = "outside-secret"
Case = tuple[str, str, str, Callable[[Path, Path], None]]
"""What it is, the format, how it is loaded, and what does it: called with the folder and the one outside."""


def linked(name: str) -> Callable[[Path, Path], None]:
    """A file or folder that is a link to the same outside."""

    def change(folder: Path, outside: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(outside / name)

    return change


def linked_relatively(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(os.path.relpath(outside / name, folder))

    return change


def through_a_folder(name: str) -> Callable[[Path, Path], None]:
    """A link to a link that leads out."""

    def change(folder: Path, outside: Path) -> None:
        (folder / "inner").symlink_to(outside)
        (folder / name).unlink()
        (folder / name).symlink_to(f"inner/{name}")

    return change


def imitated_cache(folder: Path, outside: Path) -> None:
    """The layout of the hub's cache, whose blobs are a link themselves."""
    snapshot = folder / "models--a--b" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (folder / "models--a--b" / "blobs").symlink_to(outside)
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(snapshot / path.name)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/model.safetensors")


def indexed(place: str) -> Callable[[Path, Path], None]:
    """An index that names a file elsewhere; {} stands for the outside."""

    def change(folder: Path, outside: Path) -> None:
        (folder / "model.safetensors").unlink()
        from conversion.formats import safetensors

        names = safetensors.read(outside / "model.safetensors")
        shards = dict.fromkeys(names, place.replace("{}", str(outside)))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    return change


def digest_of(place: str) -> Callable[[Path, Path], None]:
    """Digests of files elsewhere."""

    def change(folder: Path, outside: Path) -> None:
        from ved_core.digests import Digests

        files = {place.replace("{}", str(outside)): "0" * 32}
        (folder / DIGESTS).write_text(Digests(files, {}).to_json())

    return change


def interrupted(names: Any) -> Callable[[Path, Path], None]:
    """What an interrupted save leaves behind, with a list of what is to go."""

    def change(folder: Path, outside: Path) -> None:
        commit = folder / ".ved-commit"
        commit.mkdir()
        (commit / ".ved-removed.json").write_text(json.dumps(names).replace("{}", str(outside)))

    return change


def interrupted_elsewhere(folder: Path, outside: Path) -> None:
    (outside / ".ved-removed.json").write_text("[]")
    (folder / ".ved-commit").symlink_to(outside)


def tokenizer_file(folder: Path, outside: Path) -> None:
    """A tokenizer's config that names another file."""
    (folder / "tokenizer.json").unlink()
    path = folder / "tokenizer_config.json"
    place = str(outside / "tokenizer.json")
    named = {"tokenizer_file": place, "vocab_file": place, "merges_file": place, "name_or_path": str(outside)}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))


def orbax_link(folder: Path, outside: Path) -> None:
    inside = next(path for path in (folder / "orbax_model").rglob("*") if path.is_file() and path.parent.name == "d")
    other = outside / inside.name
    shutil.copy(inside, other)
    inside.unlink()
    inside.symlink_to(other)


def h5_link(folder: Path, outside: Path) -> None:
    import h5py

    with h5py.File(folder / "tf_model.h5", "r+") as file:
        layer = next(key for key in file if len(file[key]))
        inner = next(iter(file[layer]))
        del file[layer][inner]
        file[layer][inner] = h5py.ExternalLink(str(outside / "tf_model.h5"), f"/{layer}/{inner}")


def h5_raw(folder: Path, outside: Path) -> None:
    import h5py

    with h5py.File(folder / "tf_model.h5", "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if getattr(item, "ndim", 0) == 2 else None)
        size, dtype = file[names[0]].shape, file[names[0]].dtype
        del file[names[0]]
        file.create_dataset(names[0], size, dtype, external=[(str(outside / "model.safetensors"), 0, 2**20)])


TEXTS = ("config.json", "generation_config.json", DIGESTS)
WEIGHTS = {"torch": "pytorch_model.bin", "flax": "flax_model.msgpack", "tf": "tf_model.h5", "orbax": "orbax_model"}
SHARDS = (
    *("../outside-secret/model.safetensors", "{}/model.safetensors", "..\\outside-secret\\model.safetensors"),
    *("./../outside-secret/model.safetensors", "x/../../outside-secret/model.safetensors", "model.safetensors\0"),
)
PROMISED = (
    "../outside-secret/config.json",
    "{}/config.json",
    "model.safetensors/../../outside-secret/config.json",
    "a\0",
)
REMOVED = ([".."], ["../outside-secret"], ["{}"], ["a/.."], ["x/../.."], [""], ["."], "..", {"..": 1}, [["a"]], None)


def cases() -> Iterator[Case]:
    """All of them."""
    for name in ("model.safetensors", *TEXTS):
        for way in ("flax", "torch", "read"):
            yield f"{name} is a link", "safetensors", way, linked(name)
        yield f"{name} is a relative link", "safetensors", "torch", linked_relatively(name)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        yield f"{name} is a link", "safetensors", "processor", linked(name)
    yield "a link by way of a folder", "safetensors", "flax", through_a_folder("model.safetensors")
    yield "the hub's cache, imitated", "safetensors", "read", imitated_cache
    for each, name in WEIGHTS.items():
        yield f"{name} is a link", each, "read", linked(name)
    yield "a file in orbax_model is a link", "orbax", "read", orbax_link
    yield "a link inside the HDF5 file", "tf", "read", h5_link
    yield "numbers outside the HDF5 file", "tf", "read", h5_raw
    for shard in SHARDS:
        for way in ("flax", "torch"):
            yield f"index: {shard!r}", "safetensors", way, indexed(shard)
    for path in PROMISED:
        yield f"digests: {path!r}", "safetensors", "read", digest_of(path)
    for removed in REMOVED:
        yield f"an interrupted save: {removed!r}", "safetensors", "read", interrupted(removed)
    for way in ("read", "flax"):
        yield "an interrupted save elsewhere", "safetensors", way, interrupted_elsewhere
    yield "the tokenizer's config names a file", "safetensors", "processor", tokenizer_file


CASES = list(cases())


def run(seed: int, count: int) -> Iterator[Outcome]:
    """All of them, in an order of the seed's."""
    order = CASES.copy()
    random.Random(seed).shuffle(order)
    with Worker() as worker:
        for case in order[:count]:
            with tempfile.TemporaryDirectory() as place:
                yield attempt(worker, Path(place), *case)
    if count >= len(order):
        yield from allowed()


def attempt(
    worker: Worker, place: Path, name: str, each: str, way: str, change: Callable[[Path, Path], None]
) -> Outcome:
    """One case, in folders of its own."""
    outside, folder = place / SECRET, place / "x"
    for made in (outside, folder):
        source = place / f"source-{made.name}"
        shutil.copytree(FIXTURES / "vit-gpt2", source)
        for text in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            shutil.copy(READER / text, source)
        convert(source, made, each)
    if each != "safetensors":
        convert(FIXTURES / "vit-gpt2", outside)
    change(folder, outside)
    before = state(outside)
    inner = next(folder.glob("models--*/snapshots/*"), folder)
    options = {} if way == "processor" or "digests" in name or DIGESTS in name else {"check_digests": False}
    answer = worker.ask(way, inner, **options)
    if state(outside) != before:
        return Outcome(name, "failed", "the folder outside has changed")
    if answer.kind != "refused":
        return Outcome(name, "failed", answer.detail or "is followed")
    return Outcome(name, "refused", answer.detail)


def state(folder: Path) -> dict[str, bytes]:
    """All of a folder's files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def allowed() -> Iterator[Outcome]:
    """What is no attack goes on working: the hub's cache, links inside a folder, a link to a folder."""
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        snapshot = Path(place, "models--a--b", "snapshots", "c")
        blobs = Path(place, "models--a--b", "blobs")
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for path in sorted((FIXTURES / "vit-gpt2").iterdir()):
            shutil.copy(path, blobs / f"blob-{path.name}")
            (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
        inside = Path(place, "inside")
        shutil.copytree(FIXTURES / "vit-gpt2", inside)
        (inside / "model.safetensors").rename(inside / "weights")
        (inside / "model.safetensors").symlink_to("weights")
        whole = Path(place, "whole")
        whole.symlink_to(inside)
        for folder in (snapshot, inside, whole):
            answer = worker.ask("read", folder)
            yield Outcome(f"{folder.name} loads", "survived" if answer.kind == "done" else "failed", answer.detail)


ATTACK = Attack("index and config paths that leave the folder", len(CASES), run, short=4)
