"""Malformed checkpoints in all five formats: one typed error each, soon, in little memory, and no model.

Cases are a small model's files with one thing wrong, files that were made by hand (`tests.hostile`), and random damage
(`tests.damage`). What random damage leaves readable may be read; of anything else only the right numbers. Digests are
off, so that the readers have to notice.
"""

import copy
import io
import itertools
import json
import os
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS
from conversion.tensors import equal
from tests import hostile
from tests.cases import FIXTURES
from tests.damage import damaged, files
from tests.torture import Attack, Outcome
from tests.torture.worker import Worker

SOURCE = FIXTURES / "vit-gpt2"
MEMORY = 64 * 2**20
WAYS = ("read", "flax", "torch")
Change = Callable[[Path, random.Random], None]
"""Makes one thing wrong with a folder."""
BAD_SIZES: tuple[Any, ...] = (-1, 2**31, 2**40, 2**63, 2**64, 1.5, "8", None, True, [2], {})
BAD_NAMES = ("../x", "/etc/passwd", "a\0b", "", "x" * 100_000, "a\\b", ".", "\u202e", "encoder")


def run(seed: int, count: int) -> Iterator[Outcome]:
    """Every format's kinds in turn, each read without a framework, by Flax and by PyTorch in turn."""
    kinds = {name: [*each.items(), *ANY.items()] for name, each in KINDS.items()}
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        whole = {name: Path(place, "whole", name) for name in FORMATS}
        for name, folder in whole.items():
            convert(SOURCE, folder, name)
            for way in WAYS if name == "safetensors" else WAYS[:1]:
                answer = worker.ask(way, folder)
                if answer.kind != "done":
                    yield Outcome(f"{name} undamaged, {way}", "failed", answer.detail)
        for number in range(count):
            name = list(FORMATS)[number % len(FORMATS)]
            turn = number // len(FORMATS) + seed
            kind, change = kinds[name][turn % len(kinds[name])]
            rng = random.Random(seed * 1_000_003 + number)
            way = WAYS[(turn // len(kinds[name]) + turn) % len(WAYS)]
            folder = Path(place, "case")
            shutil.copytree(whole[name], folder)
            change(folder, rng)
            found = outcome(worker, f"{number}: {name}, {kind}, {way}", way, folder, may_live=True)
            if found.verdict == "survived" and not kind.startswith("random") and not same(folder, whole[name]):
                found = Outcome(found.case, "failed", "is read as if nothing were wrong")
            yield found
            shutil.rmtree(folder)


def same(folder: Path, whole: Path) -> bool:
    """Whether a folder has all the numbers that it had: what was wrong with it was of no use to anyone."""
    found, expected = (checkpoint.read(place, check_digests=False) for place in (folder, whole))
    return found.keys() == expected.keys() and all(equal(found[name], tensor) for name, tensor in expected.items())


def outcome(worker: Worker, case: str, way: str, folder: Path, *, may_live: bool = False, **options: Any) -> Outcome:
    """Read a folder in a process of its own."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    answer = worker.ask(way, folder, **{"check_digests": False, **options})
    if answer.grown > 2 * size + MEMORY:
        return Outcome(case, "failed", f"takes {answer.grown >> 20} MiB for {size} bytes; {answer.detail}")
    if answer.kind == "refused" or (answer.kind == "done" and may_live):
        return Outcome(case, "refused" if answer.kind == "refused" else "survived", answer.detail)
    return Outcome(case, "failed", answer.detail or "is read as if nothing were wrong")


# Any format -----------------------------------------------------------------------------------------------------------


def one(folder: Path, rng: random.Random) -> Path:
    """One of a folder's files of weights."""
    return rng.choice(files(folder))


def replaced(path: Path, data: bytes) -> None:
    """Another file in a file's place."""
    path.unlink()
    path.write_bytes(data)


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


# safetensors ----------------------------------------------------------------------------------------------------------


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


# Flax -----------------------------------------------------------------------------------------------------------------


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


# PyTorch --------------------------------------------------------------------------------------------------------------


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


# TensorFlow -----------------------------------------------------------------------------------------------------------


def with_dataset(change: Callable[[Any, str, Any, random.Random], None]) -> Change:
    """An HDF5 file one of whose arrays is put otherwise; `change(group, name, array, rng)` puts it."""
    import h5py

    def changed(folder: Path, rng: random.Random) -> None:
        path = folder / "tf_model.h5"
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if getattr(item, "ndim", 0) == 2 else None)
            where, _, name = rng.choice(sorted(names)).rpartition("/")
            array = file[where][name][...]
            del file[where][name]
            change(file[where], name, array, rng)

    return changed


def h5_link(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    import h5py

    (Path(group.file.filename).parent / "outside.h5").write_bytes(hostile.h5_file(lambda layer: None))
    links = (h5py.SoftLink("/none"), h5py.SoftLink(group.name), h5py.ExternalLink("outside.h5", "/encoder"))
    links += (h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink(f"{group.name}/{name}"), h5py.SoftLink("/"))
    group[name] = rng.choice(links)


def h5_external(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    place = rng.choice(("/etc/passwd", "outside", "../outside"))
    group.create_dataset(name, array.shape, array.dtype, external=[(place, 0, array.nbytes)])


def h5_virtual(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    import h5py

    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource(rng.choice((".", "/etc/passwd", "outside.h5")), "x", array.shape)
    group.create_virtual_dataset(name, layout)


def h5_dtype(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    import h5py

    kinds = ([("a", "f4"), ("b", "i4")], "V8", "S4", h5py.vlen_dtype("f4"), h5py.string_dtype(), h5py.ref_dtype, ">f4")
    kinds += (h5py.enum_dtype({"a": 1}), np.dtype(("f4", (2,))), "i4", "u1", "c8", "f2,f2", h5py.opaque_dtype("M8[s]"))
    group.create_dataset(name, array.shape, rng.choice(kinds))


def h5_shape(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    bombs = ((2**31, 2**31), (2**62,), (0, 2**40), (1,) * 32, (3,), ())
    size = rng.choice(bombs)
    chunked = len(size) in (1, 2) and 0 not in size
    group.create_dataset(name, size, "f4", chunks=(2**5,) * len(size) if chunked and min(size) > 2**5 else None)


def h5_packed(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    group.create_dataset(name, data=np.zeros(2**23, np.float32), compression="gzip", shuffle=rng.random() < 0.5)


def h5_group(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    if rng.random() < 0.5:
        group[name] = group
    else:
        group.create_group("/".join([name] * rng.choice((2, 70, 500))))["x"] = array


# Orbax ----------------------------------------------------------------------------------------------------------------


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


def made(name: str, content: bytes) -> Change:
    """A file that was made by hand."""
    return lambda folder, rng: replaced(folder / FORMATS[name].weights, content)


def by_hand(name: str, table: list[tuple[Any, str]]) -> dict[str, Change]:
    """`tests.hostile`'s files."""
    return {f"by hand, {match}, {i}": made(name, data) for i, (data, match) in enumerate(table)}


KINDS: dict[str, dict[str, Change]] = {
    "safetensors": {
        "header's length": header_length,
        **{f"header's {change.__name__}": with_header(change) for change in (shape, turned, offsets, dtype, renamed)},
        **{f"header's {change.__name__}": with_header(change) for change in (missing, twice, metadata, other_header)},
        **by_hand("safetensors", hostile.SAFETENSORS),
    },
    "torch": {
        **{each.__name__: with_archive(each) for each in (without_member, shorter_member, other_pickle, big_endian)},
        "nested_archive": with_archive(nested_archive),
        **by_hand("torch", hostile.TORCH),
    },
    "flax": {
        **{each.__name__: with_tree(each) for each in (flax_array, flax_value, flax_name, flax_chunks, flax_bytes)},
        **by_hand("flax", hostile.FLAX),
    },
    "tf": {
        **{each.__name__: with_dataset(each) for each in (h5_link, h5_external, h5_virtual, h5_dtype, h5_shape)},
        **{each.__name__: with_dataset(each) for each in (h5_packed, h5_group)},
        **by_hand("tf", [(hostile.h5_file(fill), match) for fill, match in hostile.TENSORFLOW[:2]]),
    },
    "orbax": {
        **{each.__name__: with_tree_metadata(each) for each in (orbax_key, orbax_value, orbax_text)},
        "orbax_file": orbax_file,
        "orbax_zarr": orbax_zarr,
        "orbax_zarr again": orbax_zarr,
    },
}
# Kinds that choose come as often as those that are one file.
for _name, _kinds in KINDS.items():
    _chosen = {kind: change for kind, change in _kinds.items() if not kind.startswith("by hand")}
    _fixed = len(_kinds) - len(_chosen)
    _more = itertools.islice(itertools.cycle(_chosen.items()), max(0, _fixed - len(_chosen)))
    KINDS[_name] = _kinds | {f"{kind} ({i})": change for i, (kind, change) in enumerate(_more)}

ATTACK = Attack("malformed checkpoints", 500, run, short=10)
