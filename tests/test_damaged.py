"""Damaged and hostile files end in a CheckpointError: soon, in little memory, and without harm to the process."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import ml_dtypes
import msgpack
import numpy as np
import pytest

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS
from tests import hostile
from tests.cases import FIXTURES, ROOT
from tests.hostile import dataset, entry, h5_file, safetensors_file
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


@pytest.mark.parametrize(
    ("data", "match"),
    hostile.SAFETENSORS,
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


@pytest.mark.parametrize(
    ("data", "match"),
    hostile.FLAX,
)
def test_flax(data, match, tmp_path):
    fails(tmp_path / "flax_model.msgpack", data, match)


# PyTorch --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "match"),
    hostile.TORCH,
)
def test_torch(data, match, tmp_path):
    assert fails(tmp_path / "pytorch_model.bin", data, match) < 5
    assert np.dtype(ml_dtypes.bfloat16).byteorder == "="
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2


# TensorFlow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "match"),
    hostile.TENSORFLOW,
)
def test_tensorflow(fill, match, tmp_path):
    assert fails(tmp_path / "tf_model.h5", h5_file(fill), match) < 5


def test_an_array_that_many_layers_share_is_compared_with_itself_once(tmp_path):
    def fill(layer):
        layer["m/x:0"] = np.ones(2**20, np.float32)
        for i in range(1000):
            other = layer.parent.create_group(f"{i}")
            other.attrs["weight_names"] = ["m/x:0"]
            other["m/x:0"] = layer["m/x:0"]

    (tmp_path / "tf_model.h5").write_bytes(h5_file(fill))
    assert [tensor.shape for tensor in checkpoint.read(tmp_path).values()] == [(2**20,)]


@pytest.mark.parametrize("place", [0.5, 0.75])
def test_a_packed_array_that_is_damaged_inside(place, tmp_path):
    numbers = np.random.default_rng(0).standard_normal(100_000)
    data = bytearray(h5_file(dataset(data=numbers, compression="gzip")))
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


@pytest.mark.parametrize("name", ["tf", "orbax"])
def test_what_is_read_when_used_is_of_one_save(name, tmp_path):
    if name == "tf":
        path = tmp_path / "tf_model.h5"
        path.write_bytes(h5_file(dataset(data=np.zeros(9, np.float32), compression="gzip")))
        (tensor,) = checkpoint.read(tmp_path).values()
        os.replace(shutil.copy(path, tmp_path / "new"), path)
    else:
        convert(FIXTURES / "vit-gpt2", tmp_path / "x", "orbax")
        tensor = next(iter(checkpoint.read(tmp_path / "x").values()))
        convert(FIXTURES / "vit-gpt2", tmp_path / "x", "orbax")
    with pytest.raises(CheckpointError, match="was written anew while it was read"):
        np.asarray(tensor)


def test_names_of_strangers_stay_in_one_line_of_the_error(tmp_path):
    name = "a\nved: all is well\x1b[2J\u202e" + "x" * 100_000
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb({name: None}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path)
    assert r"a\nved: all is well\x1b[2J\u202e" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 5000
