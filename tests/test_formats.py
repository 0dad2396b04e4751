"""Every format: the files of other libraries, round trips between all of them, and what is refused."""

import importlib
import itertools
import json
import pickle
import re
import shutil
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from conversion import checkpoint, naming
from conversion.convert import convert
from conversion.formats import FORMATS, flax_msgpack, msgpack_tree, safetensors, tf_h5, torch_bin, torch_pickle
from conversion.rules import Carried, Dropped, Row
from conversion.source import find
from conversion.tables import model_table
from conversion.tensors import Lazy, cast
from tests import cases
from tests.cases import FIXTURES, READER, SHARED
from tests.formats import SOURCES, content, rounded
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError
from ved_core.hub import WEIGHT_PATTERNS

pytest.importorskip("orbax.checkpoint")
PEERS = sorted(SHARED.glob("*/*.msgpack")) + sorted(SHARED.glob("*/*.h5")) + sorted(SHARED.glob("*/*.bin"))
CIRCUIT = [dict(zip("STFHO", FORMATS, strict=True))[letter] for letter in "STFHOSFOTHSHTOFSOHFTS"]
"""A way through all 20 ordered pairs of formats, each once."""
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.int32, np.uint8, np.bool_)


def tree_of(path):
    """An HDF5 file's groups, attributes and datasets, without the counters in the names of models."""
    found = {}

    def plain(value):
        names = [str(name) for name in value] if isinstance(value, np.ndarray) else str(value)
        return sorted(names) if isinstance(names, list) else names

    def visit(name, item):
        found[name] = {key: plain(value) for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            found[name] |= {"shape": item.shape, "dtype": str(item.dtype), "bytes": item[...].tobytes()}

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return re.sub(r"(tf_vision_encoder_decoder_model)_\d+", r"\1", repr(sorted(found.items())))


@pytest.mark.parametrize("path", PEERS, ids=lambda path: f"{path.parent.name}-{path.suffix[1:]}")
def test_files_of_other_libraries(path, tmp_path):
    """Read as the safetensors file beside them; written as they are."""
    folder = path.parent
    expected = checkpoint.read(folder, ["safetensors"])
    table = model_table(VisionEncoderDecoderConfig.from_pretrained(folder))
    for one in (path, folder):
        wanted = next(name for name, each in FORMATS.items() if each.weights == path.name)
        found = checkpoint.canonical(checkpoint.read(one, [wanted]), table, "")
        assert found.keys() == checkpoint.canonical(expected, table, "").keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    convert(folder, tmp_path, wanted, wanted=["safetensors"])
    if wanted == "flax":
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    elif wanted == "torch":
        ours, theirs = torch_bin.read(tmp_path / path.name).keys(), torch_bin.read(path).keys()
        assert ours <= theirs
        assert theirs - ours <= {row.stored for row in table.rows if isinstance(row, Dropped)}
    elif wanted == "tf":
        assert tree_of(tmp_path / path.name) == tree_of(path)


def test_shared_fixtures_are_there():
    assert len(PEERS) == 20 or not SHARED.is_dir()


@pytest.mark.parametrize("source", ["vit-bert", pytest.param("swin-bert", marks=pytest.mark.slow)])
def test_a_way_through_all_pairs_of_formats_is_bitwise(source, tmp_path):
    assert set(itertools.pairwise(CIRCUIT)) == set(itertools.permutations(FORMATS, 2))
    convert(SOURCES[source], tmp_path / "0")
    for i, name in enumerate(CIRCUIT[1:]):
        convert(tmp_path / f"{i}", tmp_path / f"{i + 1}", name)
        assert find(tmp_path / f"{i + 1}").format.name == name
        if name == "safetensors":
            assert content(tmp_path / f"{i + 1}") == content(tmp_path / "0"), CIRCUIT[: i + 2]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_ordered_pair_of_formats_is_bitwise(source, tmp_path):
    """One to another and back."""
    for name in FORMATS:
        convert(SOURCES[source], tmp_path / name, name)
    for one, other in itertools.permutations(FORMATS, 2):
        convert(tmp_path / one, tmp_path / "there", other)
        convert(tmp_path / "there", tmp_path / "back", one)
        convert(tmp_path / "back", tmp_path / "again")
        assert content(tmp_path / "again") == content(tmp_path / "safetensors"), (one, other)
        assert find(tmp_path / "back").format.name == one


@pytest.mark.parametrize("name", FORMATS)
def test_bfloat16_survives_every_format(name, tmp_path):
    source = rounded(FIXTURES / "vit-gpt2", tmp_path / "source")
    convert(source, tmp_path / "there", name)
    convert(tmp_path / "there", tmp_path / "back")
    assert content(tmp_path / "back") == content(source)


@pytest.mark.parametrize("name", FORMATS)
def test_models_load_and_save_every_format(name, tmp_path):
    """`from_pretrained` and `save_pretrained` of both frameworks."""
    source = FIXTURES / "vit-bert"
    convert(source, tmp_path / "there", name)
    expected = content(source)
    for framework, cls in models():
        model = cls.from_pretrained(tmp_path / "there")
        model.save_pretrained(tmp_path / framework, format=name)
        convert(tmp_path / framework, tmp_path / f"{framework}-back")
        assert content(tmp_path / f"{framework}-back") == expected


def models():
    for framework, module, name in (
        ("flax", "ved_flax", "FlaxVisionEncoderDecoderModel"),
        ("torch", "ved_torch", "VisionEncoderDecoderModel"),
    ):
        try:
            yield framework, getattr(__import__(module), name)
        except ImportError:
            continue


@pytest.mark.parametrize("name", ["safetensors", "torch", "flax", "tf"])
def test_shards(name, tmp_path):
    source = FIXTURES / "swin-bert"
    convert(source, tmp_path / "shards", name, shard_size="40KB")
    names = [path.name for path in (tmp_path / "shards").iterdir() if FORMATS[name].owns(path.name)]
    assert FORMATS[name].index in names
    assert len(names) > 4
    assert FORMATS[name].weights not in names
    convert(tmp_path / "shards", tmp_path / "back")
    assert content(tmp_path / "back").items() >= content(source).items()
    convert(source, tmp_path / "shards", name)  # one file takes their place
    assert [path.name for path in (tmp_path / "shards").iterdir() if FORMATS[name].owns(path.name)] == [
        FORMATS[name].weights
    ]


def test_orbax_has_no_shards(tmp_path):
    with pytest.raises(CheckpointError, match="divides its files by itself"):
        convert(READER, tmp_path / "x", "orbax", shard_size="1MB")


@pytest.mark.parametrize("size", ["0", "-1", "1XB", "MB", "1e3", "two"])
def test_impossible_shard_sizes(size, tmp_path):
    with pytest.raises(CheckpointError, match="should be a number of bytes"):
        convert(READER, tmp_path / "x", shard_size=size)


@pytest.mark.parametrize("encoder", cases.ENCODERS)
def test_names_of_encoders_lead_back(encoder):
    check_names(encoder, "gpt2")


@pytest.mark.parametrize("decoder", cases.DECODERS)
def test_names_of_decoders_lead_back(decoder):
    check_names("vit", decoder)


@pytest.mark.parametrize(
    ("encoder", "decoder"), [(e, "gpt2") for e in cases.ENCODERS] + [("vit", d) for d in cases.DECODERS]
)
def test_rows_are_the_models_parameters(encoder, decoder):
    """Every parameter of both frameworks' models has a row, and its shape."""
    config = VisionEncoderDecoderConfig.from_dict(cases.model_config(encoder, decoder))
    rows = [row for row in model_table(config).rows if isinstance(row, Row)]
    for framework, cls in models():
        module = importlib.import_module(f"ved_{framework}.state")
        expected = {
            name: part.shape
            for row in rows
            for name, part in zip(
                row.names(framework), row.load(np.broadcast_to(np.float32(0), row.shape), framework), strict=True
            )
        }
        assert module.shapes(module.abstract(lambda cls=cls: cls(config))) == expected


def check_names(encoder, decoder):
    """Each row's tensor in Flax's and TensorFlow's dialects becomes itself again."""
    config = VisionEncoderDecoderConfig.from_dict(cases.model_config(encoder, decoder))
    table = model_table(config)
    rng = np.random.default_rng(0)
    tensors = {row.stored: rng.standard_normal(row.shape) for row in table.rows if isinstance(row, Row | Carried)}
    for dialect in ("hf_flax", "hf_tf"):
        there = naming.from_torch(tensors, table, config, dialect)
        assert len(there) == len(tensors)
        back = checkpoint.canonical(naming.to_torch(there, dialect), table, "")
        assert back.keys() == tensors.keys()
        assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_two_equal_biases_of_a_head_become_one():
    config = VisionEncoderDecoderConfig.from_dict(cases.model_config("vit", "bert-untied-relu"))
    biases = {f"decoder.cls.predictions.{name}": np.arange(61.0) for name in ("decoder.bias", "bias")}
    there = naming.from_torch(biases, model_table(config), config, "hf_flax")
    assert there.keys() == {"decoder/cls/predictions/bias"}
    assert naming.to_torch(there, "hf_flax").keys() == {"decoder.cls.predictions.bias"}


def test_hugging_faces_safetensors_in_other_dialects(tmp_path, monkeypatch):
    """Its Flax classes wrote model.safetensors too, and say so in its metadata."""
    shutil.copytree(SHARED / "vit-bert" if SHARED.is_dir() else FIXTURES / "vit-bert", tmp_path / "x")
    convert(FIXTURES / "vit-bert", tmp_path / "flax", "flax")
    tensors = flax_msgpack.read(tmp_path / "flax" / "flax_model.msgpack")
    monkeypatch.setattr(safetensors, "layout", lambda path: "flax")
    dotted = {name.replace("/", "."): tensor for name, tensor in tensors.items()}
    safetensors.write(tmp_path / "flax" / "model.safetensors", dotted)
    table = model_table(VisionEncoderDecoderConfig.from_pretrained(tmp_path / "flax"))
    found = checkpoint.canonical(checkpoint.read(tmp_path / "flax", ["safetensors"]), table, "")
    assert all(np.array_equal(x, checkpoint.read(FIXTURES / "vit-bert")[name]) for name, x in found.items())


# The files by themselves ----------------------------------------------------------------------------------------------

TENSORS = {f"a/b/{np.dtype(dtype).name}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES}
TENSORS |= {"a/b/scalar": np.array(1.5, np.float32), "a/b/empty": np.zeros((0, 3), np.float32)}
TENSORS |= {"a/b/transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a/b/é": np.ones(1, np.float32)}
FILES = {"safetensors": safetensors, "torch": torch_bin, "flax": flax_msgpack, "tf": tf_h5}


@pytest.mark.parametrize("name", FILES)
def test_every_dtype_and_shape_goes_through_a_file(name, tmp_path):
    lazy = {key: Lazy(x.shape, x.dtype, lambda x=x: x) for key, x in TENSORS.items()}
    for tensors in (TENSORS, lazy):
        FILES[name].write(tmp_path / "file", tensors)
        found = FILES[name].read(tmp_path / "file")
        assert found.keys() == TENSORS.keys()
        for key, x in TENSORS.items():
            assert (found[key].dtype, found[key].shape) == (x.dtype, x.shape), key
            assert np.asarray(found[key]).tobytes() == x.tobytes(), key
            assert not isinstance(found[key], np.ndarray) or not found[key].flags.writeable


def test_files_are_what_the_libraries_would_write(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    numpy = pytest.importorskip("safetensors.numpy")
    plain = {key: x for key, x in TENSORS.items() if x.dtype != ml_dtypes.bfloat16}
    safetensors.write(tmp_path / "ours", plain)
    numpy.save_file({key: np.ascontiguousarray(x).reshape(x.shape) for key, x in plain.items()}, tmp_path / "theirs")
    read = numpy.load_file(tmp_path / "ours")
    assert all(np.array_equal(read[key], x) for key, x in plain.items())
    assert (tmp_path / "ours").read_bytes().endswith((tmp_path / "theirs").read_bytes()[-200:])
    flax_msgpack.write(tmp_path / "ours", TENSORS)
    tree = {"a": {"b": {key.rpartition("/")[2]: TENSORS[key] for key in sorted(TENSORS)}}}
    assert (tmp_path / "ours").read_bytes() == serialization.to_bytes(tree)


def test_large_arrays_of_flax_are_in_chunks(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(msgpack_tree, "CHUNK", 16)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    array = np.arange(15, dtype=np.float32).reshape(3, 5)
    flax_msgpack.write(tmp_path / "x", {"a/b": array})
    assert (tmp_path / "x").read_bytes() == serialization.to_bytes({"a": {"b": array}})
    np.testing.assert_array_equal(flax_msgpack.read(tmp_path / "x")["a/b"], array)


@pytest.mark.oracle
@pytest.mark.parametrize("old", [False, True])
def test_torch_reads_and_writes_the_same(old, tmp_path):
    torch = pytest.importorskip("torch")
    torch_bin.write(tmp_path / "ours", TENSORS)
    found = torch.load(tmp_path / "ours", weights_only=True, mmap=True)
    assert found["a/b/bfloat16"].dtype == torch.bfloat16
    assert all(np.array_equal(found[key].float().numpy(), x.astype(np.float32)) for key, x in TENSORS.items())
    one = torch.randn(4, 6)
    state = {"view": one[1:3].T, "same": one, "parameter": torch.nn.Parameter(torch.randn(2).bfloat16())}
    torch.save(state, tmp_path / "theirs", _use_new_zipfile_serialization=not old)
    read = torch_bin.read(tmp_path / "theirs")
    assert all(np.array_equal(read[key].astype(np.float32), x.detach().float()) for key, x in state.items())
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "theirs", _use_new_zipfile_serialization=not old)
    assert torch_bin.read(tmp_path / "theirs").keys() == {"weight", "bias"}


def test_long_lists_of_names_are_split_as_keras_does(tmp_path):
    tensors = {f"model/layer/{'x' * 80}{i}:0": np.zeros(1, np.float32) for i in range(300)}
    tf_h5.write(tmp_path / "x", tensors)
    with h5py.File(tmp_path / "x") as file:
        assert sorted(file["layer"].attrs) == ["weight_names0", "weight_names1"]
    assert tf_h5.read(tmp_path / "x").keys() == tensors.keys()


def test_casts_say_what_does_not_fit():
    tensor = np.array([1.0, 1e6], np.float32)
    assert np.asarray(cast("x", tensor, np.dtype(ml_dtypes.bfloat16))).dtype == ml_dtypes.bfloat16
    assert cast("x", np.arange(3), np.dtype(np.float16)).dtype == np.int64
    with pytest.raises(CheckpointError, match=r"x: values of up to 1e\+06 are too large for float16"):
        np.asarray(cast("x", tensor, np.dtype(np.float16)))


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_named(name, tmp_path):
    FILES[name].write(tmp_path / "whole", TENSORS)
    data = (tmp_path / "whole").read_bytes()
    for keep in (0, 1, 7, 9, len(data) // 3, len(data) - 700, len(data) - 1):
        (tmp_path / "file").write_bytes(data[:keep])
        with pytest.raises(CheckpointError) as caught:
            {key: np.asarray(x) for key, x in FILES[name].read(tmp_path / "file").items()}
        assert str(tmp_path / "file") in str(caught.value)


class Payload:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "call", [(eval, ("1+1",)), (print, ("x",)), (np.zeros, (3,)), (getattr, (1, "real")), (Payload, (1,))]
)
def test_pickles_that_call_anything_are_refused(call, zipped, tmp_path):
    payload = pickle.dumps({"a": Payload(call)}, 2)
    path = tmp_path / "pytorch_model.bin"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", payload)
    else:
        header = [pickle.dumps(part, 2) for part in (torch_bin.MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*header, payload, pickle.dumps([], 2)]))
    with pytest.raises(CheckpointError, match=r"is not loaded from a checkpoint|holds more than a"):
        torch_bin.read(path)


def test_the_allowed_names_are_stand_ins():
    for name, value in torch_pickle.ALLOWED.items():
        ours = (
            getattr(value, "__module__", "").startswith("conversion.") or value is tuple or isinstance(value, np.dtype)
        )
        assert ours, name


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": {"a": np.ones(2)}, "optimizer": {"lr": 1}}, r"its 'model' may be the model"),
        ([1, 2], "holds one list"),
        ({"a": 3}, r"more than a model's tensors \(a\)"),
    ],
)
def test_training_states_are_explained(state, message, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {"model": {"a": torch.ones(2)}, "optimizer": {"lr": 1}} if "model" in state else state
    torch.save(tensors, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=message):
        torch_bin.read(tmp_path / "x.bin")


def test_flax_training_states_are_explained(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        msgpack_tree.write(file, {"params": {"a": np.ones(1)}, "opt_state": {"b": np.ones(1)}, "step": np.ones(1)})
    with pytest.raises(CheckpointError, match=r"holds a training state \(opt_state, params, step\); write its params"):
        flax_msgpack.read(tmp_path / "x")


@pytest.mark.parametrize("link", ["soft", "external", "virtual", "raw"])
def test_links_out_of_an_hdf5_file_are_refused(link, tmp_path):
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("encoder")
        group.attrs["weight_names"] = ["m/x:0"]
        if link == "soft":
            group["m/x:0"] = h5py.SoftLink("/elsewhere")
        elif link == "external":
            group["m/x:0"] = h5py.ExternalLink(tmp_path / "secret", "/")
        elif link == "virtual":
            layout = h5py.VirtualLayout((2,), "f4")
            layout[:] = h5py.VirtualSource(tmp_path / "secret", "x", (2,))
            group.create_virtual_dataset("m/x:0", layout)
        else:
            group.create_dataset("m/x:0", (2,), "f4", external=[(str(tmp_path / "secret"), 0, 16)])
    with pytest.raises(CheckpointError, match=r"tf_model\.h5"):
        tf_h5.read(path)


def test_shapes_without_numbers_are_refused(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        group = file.create_group("encoder")
        group.attrs["weight_names"] = ["m/x:0"]
        group.create_dataset("m/x:0", (10**6, 10**6), "f4", chunks=(1000, 1000))
    with pytest.raises(CheckpointError, match="and not its numbers"):
        tf_h5.read(tmp_path / "x")


def test_content_is_compared_with_names_and_flags(tmp_path):
    shutil.copytree(READER, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"no Flax msgpack weights are there, but model.safetensors"):
        find(tmp_path / "x", ["flax"])
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "x" / "flax_model.msgpack")
    with pytest.raises(CheckpointError, match=r"holds safetensors weights, though it is to be Flax msgpack; rename it"):
        find(tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds safetensors weights, not TensorFlow h5 ones"):
        find(tmp_path / "x" / "flax_model.msgpack", ["tf"])
    assert find(tmp_path / "x" / "flax_model.msgpack").format.name == "safetensors"
    (tmp_path / "x" / "flax_model.msgpack").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        find(tmp_path / "x")
    (tmp_path / "x" / "flax_model.msgpack").rename(tmp_path / "x" / "best.pt")
    with pytest.raises(CheckpointError, match=r"no weights in any known format; for best\.pt give the file itself"):
        find(tmp_path / "x")


def test_half_written_folders_are_explained(tmp_path):
    convert(READER, tmp_path / "x", "torch", shard_size="500KB")
    (tmp_path / "x" / "pytorch_model-00002-of-00005.bin").unlink(missing_ok=True)
    next((tmp_path / "x").glob("pytorch_model-00001*")).unlink()
    with pytest.raises(CheckpointError, match=r"no such file, though pytorch_model.bin.index.json names it"):
        checkpoint.read(tmp_path / "x")
    convert(READER, tmp_path / "o", "orbax")
    (tmp_path / "o" / "orbax_model" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.ocdbt: is missing"):
        checkpoint.read(tmp_path / "o")
    with pytest.raises(CheckpointError, match="not a whole Orbax checkpoint"):
        checkpoint.read(tmp_path / "o", check_digests=False)


def test_an_orbax_tree_of_something_else_is_explained(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    shutil.copy(READER / "config.json", tmp_path)
    ocp.PyTreeCheckpointer().save(tmp_path / "orbax_model", {"params": {"a": np.ones(2)}, "opt_state": np.ones(1)})
    with pytest.raises(CheckpointError, match="its tree has opt_state, params at its top"):
        checkpoint.read(tmp_path)


def test_what_orbax_restores_is_what_our_compiled_functions_take(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("flax")
    import jax
    from flax import nnx

    from ved_flax import FlaxVisionEncoderDecoderModel, compiled

    convert(READER, tmp_path, "orbax")
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "orbax_model")["parameters"]
    restored = nnx.restore_int_paths(restored)
    expected = compiled.parameters(FlaxVisionEncoderDecoderModel.from_pretrained(READER))
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_the_hubs_patterns_are_those_of_the_formats():
    assert tuple(WEIGHT_PATTERNS) == tuple(FORMATS)
    for name, each in FORMATS.items():
        assert WEIGHT_PATTERNS[name].startswith(each.weights.partition(".")[0])


def test_json_indexes_are_read_by_transformers_rules(tmp_path):
    convert(FIXTURES / "vit-gpt2", tmp_path, "flax", shard_size="50KB")
    index = json.loads((tmp_path / "flax_model.msgpack.index.json").read_text())
    assert "encoder/embeddings/cls_token" in index["weight_map"]
    assert index["metadata"]["total_size"] > 100_000
