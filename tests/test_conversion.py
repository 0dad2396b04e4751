"""Checkpoint folders to parameters and back."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from conversion import checkpoint
from conversion.formats import files, safetensors
from conversion.rules import Carried, Dropped, Row, Tied
from conversion.tables import TABLES, model_table
from tests.cases import FIXTURES, INDEX_FILE, PAIRS, READER, WEIGHTS_FILE
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs import model as registry
from ved_core.errors import CheckpointError

pytest.importorskip("flax")
from ved_flax import FlaxVisionEncoderDecoderModel, state

FOLDERS = [READER, *(FIXTURES / pair for pair in PAIRS)]


def table_of(folder):
    return model_table(VisionEncoderDecoderConfig.from_pretrained(folder))


@pytest.fixture
def folder(tmp_path):
    """A copy of a small checkpoint, to be damaged."""
    return shutil.copytree(FIXTURES / "vit-gpt2", tmp_path / "checkpoint")


def rewrite(folder, change):
    tensors = {name: np.array(x) for name, x in checkpoint.read(folder).items()}
    change(tensors)
    safetensors.write(folder / WEIGHTS_FILE, tensors)


@pytest.mark.parametrize("source", FOLDERS, ids=lambda f: f.name)
def test_round_trip_is_bitwise_and_total(source, tmp_path):
    FlaxVisionEncoderDecoderModel.from_pretrained(source).save_pretrained(tmp_path)
    before, after = checkpoint.read(source), checkpoint.read(tmp_path)
    dropped = {row.stored for row in table_of(source).rows if isinstance(row, Dropped | Tied)}
    assert before.keys() - dropped == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        assert tensor.tobytes() == before[name].tobytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "ved_digests.json",
    ]


def test_every_registered_architecture_has_a_table():
    assert TABLES.keys() == registry.ENCODERS.keys() | registry.DECODERS.keys()


@pytest.mark.parametrize("source", FOLDERS, ids=lambda f: f.name)
def test_every_row_is_its_own_inverse(source):
    tensors = checkpoint.read(source)
    for row in table_of(source).rows:
        if isinstance(row, Row):
            for framework in ("flax", "torch"):
                parts = row.load(tensors[row.stored], framework)
                np.testing.assert_array_equal(row.store(parts, framework), tensors[row.stored])
                assert row.shape == tensors[row.stored].shape


@pytest.mark.parametrize(
    ("prefix", "other"),
    [("", "module."), ("", "_orig_mod."), ("encoder.", "encoder.vit."), ("decoder.transformer.", "decoder.")],
)
def test_names_are_found_under_published_prefixes(folder, prefix, other):
    expected = state.arrays(FlaxVisionEncoderDecoderModel.from_pretrained(folder))

    def rename(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            tensors[other + name[len(prefix) :]] = tensors.pop(name)

    rewrite(folder, rename)
    for name, array in state.arrays(FlaxVisionEncoderDecoderModel.from_pretrained(folder)).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def damage(**changes):
    def change(tensors):
        for name, value in changes.items():
            stored = name.replace("__", ".")
            if value is None:
                del tensors[stored]
            else:
                tensors[stored] = value(tensors)

    return change


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (damage(enc_to_dec_proj__bias=None), ["1 tensors are missing", "enc_to_dec_proj.bias"]),
        (damage(surprise=lambda t: np.ones(2)), ["1 are unexpected", "surprise"]),
        (
            damage(enc_to_dec_proj__weight=lambda t: t["enc_to_dec_proj.weight"].T),
            ["enc_to_dec_proj.weight", "(32, 24)", "(24, 32)"],
        ),
        (
            damage(decoder__transformer__h__0__attn__c_attn__weight=lambda t: np.ones((24, 70), np.float32)),
            ["c_attn.weight", "(24, 70)", "(24, 72)"],
        ),
        (
            damage(encoder__embeddings__patch_embeddings__projection__weight=lambda t: np.ones((32, 3), np.float32)),
            ["projection.weight", "(32, 3)", "(32, 3, 8, 8)"],
        ),
        (damage(encoder__layernorm__weight=lambda t: np.float32(1)), ["encoder.layernorm.weight", "()", "(32,)"]),
        (damage(encoder__pooler__dense__bias=lambda t: np.ones(5)), ["encoder.pooler.dense.bias", "(5,)", "(32,)"]),
        (
            damage(decoder__lm_head__weight=lambda t: t["decoder.transformer.wte.weight"] + 1),
            ["decoder.lm_head.weight differs from decoder.transformer.wte.weight", "tie_word_embeddings"],
        ),
        (
            damage(decoder__wpe__weight=lambda t: t["decoder.transformer.wpe.weight"]),
            ["decoder.transformer.wpe.weight is stored twice"],
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, change, messages):
    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    for message in (str(folder), *messages):
        assert message in str(caught.value)


def test_buffers_and_poolers_may_be_there_or_not(folder):
    wte = "decoder.transformer.wte.weight"

    def change(tensors):
        tensors["decoder.transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), bool))
        tensors["decoder.transformer.h.0.attn.masked_bias"] = np.float32(-1e4)
        tensors["decoder.lm_head.weight"] = tensors[wte].copy()
        del tensors["encoder.pooler.dense.weight"], tensors["encoder.pooler.dense.bias"]

    rewrite(folder, change)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    assert model.carried == {}
    model.save_pretrained(folder)
    assert not [
        name for name in checkpoint.read(folder) if "pooler" in name or "lm_head" in name or name.endswith(".attn.bias")
    ]


def test_a_tied_copy_stands_in_for_the_original(folder):
    tensors = checkpoint.read(folder)
    rewrite(folder, lambda t: t.update({"decoder.lm_head.weight": t.pop("decoder.transformer.wte.weight")}))
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    np.testing.assert_array_equal(model.decoder.tokens.embedding[...], tensors["decoder.transformer.wte.weight"])


def shard(folder, index_of=lambda i: f"model-0000{i}-of-00002.safetensors"):
    tensors = checkpoint.read(folder)
    names = sorted(tensors)
    halves = {1: names[::2], 2: names[1::2]}
    for i, half in halves.items():
        safetensors.write(folder / f"model-0000{i}-of-00002.safetensors", {name: tensors[name] for name in half})
    weight_map = {name: index_of(i) for i, half in halves.items() for name in half}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS_FILE).unlink()
    return tensors


def test_shards_are_read_and_replaced_by_a_save(folder):
    tensors = shard(folder)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    model.save_pretrained(folder)
    assert not (folder / INDEX_FILE).exists()
    after = checkpoint.read(folder)
    assert all(after[name].tobytes() == tensors[name].tobytes() for name in tensors)


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "a/b", "..\\x", "C:\\x", "x\0", "", ".", ".."])
def test_an_index_stays_in_its_folder(folder, place):
    shard(folder, lambda i: place)
    with pytest.raises(CheckpointError, match="outside its folder"):
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a readable index"), ('{"weight_map": 3}', "not a readable index"), ("{}", "not a readable index")],
)
def test_a_broken_index_is_named(folder, content, message):
    shard(folder)
    (folder / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)


def test_missing_and_disagreeing_shards_are_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: no such file"):
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="index and shard disagree"):
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 5, 8, 1000, -1])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"not a whole (safetensors )?file") as caught:
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    assert str(path) in str(caught.value)


def test_folders_without_weights_say_what_they_have(folder):
    (folder / WEIGHTS_FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: holds safetensors weights, though it is to be PyTo"):
        FlaxVisionEncoderDecoderModel.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_, np.float64])
def test_every_dtype_goes_through_a_file(dtype, tmp_path):
    tensors = {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype).T,
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    safetensors.write(tmp_path / "x.safetensors", tensors)
    read = safetensors.read(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(read[name], tensor)
        assert not read[name].flags.writeable


def test_half_precision_checkpoints_keep_their_numbers(folder, tmp_path):
    rewrite(folder, lambda t: t.update({name: x.astype(ml_dtypes.bfloat16) for name, x in t.items()}))
    stored = checkpoint.read(folder)
    FlaxVisionEncoderDecoderModel.from_pretrained(folder, param_dtype="bfloat16").save_pretrained(tmp_path / "same")
    same = checkpoint.read(tmp_path / "same")
    assert all(same[name].tobytes() == x.tobytes() for name, x in stored.items())
    assert json.loads((tmp_path / "same" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    FlaxVisionEncoderDecoderModel.from_pretrained(folder).save_pretrained(tmp_path / "wide")
    wide = checkpoint.read(tmp_path / "wide")
    carried = {row.stored for row in table_of(folder).rows if isinstance(row, Carried)}
    assert all(x.dtype == np.float32 for name, x in wide.items() if name not in carried)
    assert all(np.array_equal(wide[name].astype(np.float32), x.astype(np.float32)) for name, x in stored.items())


def test_a_failed_save_leaves_the_old_files(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)

    def full(file, tensor):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "put", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_new_models_carry_what_transformers_expects(tmp_path):
    config = VisionEncoderDecoderConfig.from_pretrained(FIXTURES / "vit-gpt2")
    FlaxVisionEncoderDecoderModel(config).save_pretrained(tmp_path)
    assert checkpoint.read(tmp_path).keys() == checkpoint.read(FIXTURES / "vit-gpt2").keys()
