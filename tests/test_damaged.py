"""Damaged and hostile files end in a CheckpointError: soon, in little memory, and without harm to the process."""

import io
import json
import resource
import struct
import subprocess
import sys
import time
import zipfile

import h5py
import ml_dtypes
import msgpack
import numpy as np
import pytest

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS
from tests.cases import FIXTURES, ROOT
from ved_core.errors import CheckpointError

pytest.importorskip("orbax.checkpoint")

COUNTS = {"safetensors": (150, 4000), "torch": (150, 4000), "flax": (150, 4000), "tf": (50, 2000), "orbax": (12, 500)}


@pytest.mark.parametrize(
    ("name", "count", "seed"),
    [(name, short, 0) for name, (short, _) in COUNTS.items()]
    + [pytest.param(name, long, 1, marks=pytest.mark.slow) for name, (_, long) in COUNTS.items()],
)
def test_files_damaged_at_random(name, count, seed):
    command = [sys.executable, "-m", "tests.damage", name, str(count), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def made(tensors):
    """Each tensor's numbers, one after the other."""
    for tensor in tensors.values():
        np.asarray(tensor)


def fails(path, data, match):
    """Reading ends in a CheckpointError that names the file, at once and in little memory. Returns CPU seconds."""
    path.write_bytes(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(CheckpointError, match=match) as caught:
        made(checkpoint.read(path.parent, check_digests=False))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < 2 * len(data) + 64 * 2**20
    return time.process_time() - start


# safetensors ----------------------------------------------------------------------------------------------------------


def safetensors_file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, first, last):
    return {"dtype": "F32", "shape": shape, "data_offsets": [first, last]}


MANY = b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (safetensors_file({"a": entry([0, 2**63], 0, 0)}), "has the shape"),
        (safetensors_file({"a": entry([1] * 100, 0, 4)}, bytes(4)), "has the shape"),
        (safetensors_file({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)), "not a whole"),
        (safetensors_file({"a": entry([2**40, 2**40], 0, 4)}, bytes(4)), "not a whole"),
        (safetensors_file(b"{" + MANY + b"}"), "its header of .* is larger"),
    ],
    ids=["huge", "deep", "overlapping", "overflowing", "many"],
)
def test_safetensors(data, match, tmp_path):
    fails(tmp_path / "model.safetensors", data, match)


@pytest.mark.parametrize("shards", [{}, {"a": 5}, {"a": "x" * 5000}, {"a": "\ud800"}, {"a": "../a"}, {"a": "."}, ["a"]])
@pytest.mark.parametrize("name", ["safetensors", "flax"])
def test_indexes(shards, name, tmp_path):
    (tmp_path / "5").write_bytes(safetensors_file({"a": entry([1], 0, 4)}, bytes(4)))
    data = json.dumps({"weight_map": shards}).encode()
    fails(tmp_path / FORMATS[name].index, data, "not a readable index|lies outside|no such file")


# Flax -----------------------------------------------------------------------------------------------------------------


def array(shape, size):
    return msgpack.ExtType(1, b"\x93" + msgpack.packb(shape) + msgpack.packb("int8") + msgpack.packb(bytes(size)))


def chunked(*shape):
    mark = {"__msgpack_chunked_array__": True}
    return msgpack.packb({"a": {**mark, "shape": dict(zip("01", shape, strict=False)), "chunks": {"0": array([6], 6)}}})


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (chunked(-2, -3), "not of its shape"),
        (chunked(True, 6), "not of its shape"),
        (chunked(0, 2**63), "not of its shape"),
        (chunked(None), "not a whole Flax file"),
        (b"\x81\xa1a" * 1000 + b"\xc0", "more than 64 maps"),
        (b"\xdf\xff\xff\xff\xff", "more than 65536 entries"),
        (msgpack.packb({str(i): array([0], 0) for i in range(100_000)}), "more than 65536 entries"),
        (b"\x81\xa1a\xc9\x00\x40\x00\x00\x01\x93\xdd\x00\x40\x00\x00" + bytes(2**22), "an array of unknown shape"),
        (msgpack.packb({"a": array([-1, -1], 1)}), "unknown shape or dtype"),
        (msgpack.packb({"a/b": array([1], 1), "a": {"b": array([1], 1)}}), "is stored twice"),
        (msgpack.packb({"a": b"x" * 10_000}), "begins a value"),
        (msgpack.packb({"a": "x" * 10_000}), r"a is 'x{50,60}\.\.\., where a model has arrays only"),
    ],
)
def test_flax(data, match, tmp_path):
    fails(tmp_path / "flax_model.msgpack", data, match)


# PyTorch --------------------------------------------------------------------------------------------------------------


def zipped(pickled, method=zipfile.ZIP_STORED, roots=("x",), numbers=bytes(16)):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for root in roots:
            archive.writestr(zipfile.ZipInfo(f"{root}/data.pkl"), b"\x80\x02" + pickled + b".", method)
        archive.writestr("x/data/0", numbers)
    return file.getvalue()


def number(value):
    data = value.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(offset=0, shape=(4,), strides=(1,), count=4):
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sizes + b"\x89NtR"


def state(value):
    return b"}" + text("a") + value + b"s"


def bomb(levels=28, width=8):
    """Lists of lists, each eight times the one before: few bytes, and 8**28 values."""
    lists = [b"]q\x00"]
    lists += [b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * width + b"e" for i in range(1, levels)]
    return b"".join(lists)


BUILD_DTYPE = b"ctorch\nbfloat16\n(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
BUILD_FUNCTION = b"ctorch._utils\n_rebuild_parameter\n(N}" + text("__defaults__") + b"(K\x05tstb"
COLLIDING = b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 60_000)) + b"u"


def large_directory():
    """An archive whose list of members is long."""
    data = zipped(state(tensor()))
    start, end = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    member = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, *[0] * 8, 4, *[0] * 6)
    entries = data[start:end] + b"".join(member + b"%04x" % (i % 2**16) for i in range(100_000))
    return data[:start] + entries + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entries), start, 0)


def encrypted():
    data = bytearray(zipped(state(tensor())))
    for place in (6, data.find(b"PK\x01\x02") + 8):
        data[place] |= 1
    return bytes(data)


def broken(method):
    data = bytearray(zipped(state(tensor()), method))
    data[52:70] = b"\xff" * 18
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (zipped(bomb()), "more values than any model's state"),
        (zipped(b"\x8f" * 10), "opcode EMPTY_SET"),
        (zipped(b"N0" * 2**19 + b"N"), "longer than any state dict's"),
        (zipped(b"]" * 10_000 + b"a" * 9_999), "more than 32 dicts"),
        (zipped(b"r\xff\xff\xff\x7f"), "memorises out of turn"),
        (zipped(b"\x8b\xff\xff\xff\x7f1"), "not a whole file"),
        (zipped(b"}\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b"Ns"), "numbers larger than"),
        (zipped(COLLIDING), "numbers larger than"),
        (zipped(b"}K\x01" + tensor() + b"s"), "something else than strings"),
        (zipped(state(tensor(strides=(-1,)))), "impossible shape or strides"),
        (zipped(state(tensor(strides=(2**61,)))), "larger than its storage"),
        (zipped(state(tensor(shape=(2**40, 2**40), strides=(0, 0)))), "larger than its storage"),
        (zipped(state(tensor(offset=1))), "larger than its storage"),
        (zipped(state(tensor(count=2**62))), "is too short"),
        (zipped(state(tensor()), numbers=b"12"), "is too short"),
        (zipped(state(tensor()), roots=("x", "y")), "should have one data.pkl"),
        (zipped(state(tensor()), roots=("x/y",)), "should have one data.pkl"),
        (zipped(b"N0" * 2**16 + b"N", zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        *((broken(method), "compressed or encrypted") for method in (8, 12, 14)),
        (encrypted(), "compressed or encrypted"),
        (large_directory(), "list of members is larger"),
        (zipped(BUILD_DTYPE), "changes what a name stands for"),
        (zipped(BUILD_FUNCTION), "changes what a name stands for"),
    ],
)
def test_torch(data, match, tmp_path):
    assert fails(tmp_path / "pytorch_model.bin", data, match) < 5
    assert np.dtype(ml_dtypes.bfloat16).byteorder == "="
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2


# TensorFlow -----------------------------------------------------------------------------------------------------------


def doubled(layer):
    """Groups that lead to one array on 2**40 ways."""
    inner = layer.create_group("0")
    inner["x:0"] = np.ones(3, np.float32)
    for i in range(1, 40):
        outer = layer.create_group(f"{i}")
        outer["a"] = outer["b"] = inner
        inner = outer


def linked(layer):
    layer["m/x:0"] = np.ones(3, np.float32)
    for i in range(10_001):
        layer[f"m/{i}"] = layer["m/x:0"]


def dataset(*arguments, **options):
    return lambda layer: layer.create_dataset("m/x:0", *arguments, **options)


def h5_file(tmp_path, fill):
    with h5py.File(tmp_path / "x", "w") as file:
        layer = file.create_group("encoder")
        layer.attrs["weight_names"] = ["m/x:0"]
        fill(layer)
    return (tmp_path / "x").read_bytes()


@pytest.mark.parametrize(
    ("fill", "match"),
    [
        (doubled, "is a group that is in another one too"),
        (lambda layer: layer.__setitem__("loop", layer), "is a group that is in another one too"),
        (linked, "more than 10000 groups and arrays"),
        (dataset((2,), [("a", "f4"), ("b", "i4")]), "not an array of numbers"),
        (dataset((2,), h5py.vlen_dtype("f4")), "not an array of numbers"),
        (dataset(data=["a"], dtype=h5py.string_dtype()), "not an array of numbers"),
        (dataset(dtype="f4", data=h5py.Empty("f4")), "not an array of numbers"),
        (dataset((2**31, 2**31), "f4", chunks=(2**10, 2**10)), "and not its numbers"),
        (dataset(data=np.zeros(2**23, np.float32), compression="gzip"), "and not its numbers"),
    ],
)
def test_tensorflow(fill, match, tmp_path):
    assert fails(tmp_path / "tf_model.h5", h5_file(tmp_path, fill), match) < 5


def test_an_array_that_many_layers_share_is_compared_with_itself_once(tmp_path):
    def fill(layer):
        layer["m/x:0"] = np.ones(2**20, np.float32)
        for i in range(1000):
            other = layer.parent.create_group(f"{i}")
            other.attrs["weight_names"] = ["m/x:0"]
            other["m/x:0"] = layer["m/x:0"]

    (tmp_path / "tf_model.h5").write_bytes(h5_file(tmp_path, fill))
    assert [tensor.shape for tensor in checkpoint.read(tmp_path).values()] == [(2**20,)]


@pytest.mark.parametrize("place", [0.5, 0.75])
def test_a_packed_array_that_is_damaged_inside(place, tmp_path):
    numbers = np.random.default_rng(0).standard_normal(100_000)
    data = bytearray(h5_file(tmp_path, dataset(data=numbers, compression="gzip")))
    start = int(len(data) * place)
    data[start : start + 40] = bytes(40)
    fails(tmp_path / "tf_model.h5", bytes(data), "not a whole HDF5 file")


# Orbax ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def orbax(tmp_path):
    convert(FIXTURES / "vit-gpt2", tmp_path, "orbax")
    return tmp_path


@pytest.mark.parametrize("key", ["..", "a/../../b", "/etc/passwd", "", "a\\b", "\0"])
def test_orbax_paths(key, orbax):
    path = orbax / "orbax_model" / "_METADATA"
    described = json.loads(path.read_bytes())
    next(iter(described["tree_metadata"].values()))["key_metadata"] = [{"key": key, "key_type": 2}]
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="orbax_model: not a whole Orbax checkpoint"):
        checkpoint.read(orbax, check_digests=False)


def plain_orbax(tmp_path, shape, **array):
    """A tree of one array, each part of it in a file of its own."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "orbax_model", {"parameters": {"x": np.ones((2, 3), np.float32)}})
    place = tmp_path / "orbax_model" / "parameters.x"
    described = json.loads((place / ".zarray").read_bytes())
    (place / ".zarray").write_text(json.dumps(described | array | {"shape": shape}))
    return place


@pytest.mark.parametrize(
    ("shape", "array", "match"),
    [
        ([2**40, 2**20], {}, "and not its numbers"),
        ([4, 3], {}, "cannot be read whole"),  # a second part, of which there is no file
        ([2, 3], {"dtype": "|S4"}, "is of dtype|not a whole"),
        ([-2, 3], {}, "not a whole Orbax checkpoint"),
    ],
)
def test_orbax_arrays(shape, array, match, tmp_path):
    from conversion.formats import orbax as module

    plain_orbax(tmp_path, shape, **array)
    with pytest.raises(CheckpointError, match=match):
        made(module.read(tmp_path / "orbax_model"))


def test_a_missing_part_of_an_orbax_array_is_no_zeros(tmp_path):
    from conversion.formats import orbax as module

    place = plain_orbax(tmp_path, [2, 3])
    assert np.asarray(module.read(tmp_path / "orbax_model")["parameters/x"]).tolist() == [[1] * 3] * 2
    (place / "0.0").unlink()
    with pytest.raises(CheckpointError, match="cannot be read whole"):
        np.asarray(module.read(tmp_path / "orbax_model")["parameters/x"])
