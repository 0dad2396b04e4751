"""Digests beside checkpoints: what they notice, what they say, and what they let pass."""

import json
import shutil

import numpy as np
import pytest

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS, safetensors
from tests.cases import FIXTURES, READER, WEIGHTS_FILE
from tests.test_convert import in_both, model_class
from ved_cli import main
from ved_core import digests
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError, ProcessorError
from ved_core.processing import Processor

SOURCE = FIXTURES / "vit-gpt2"
TENSOR = "encoder.encoder.layer.0.attention.attention.query.weight"


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def damage(folder, name=WEIGHTS_FILE, tensor=TENSOR):
    """Flip a bit of a tensor's numbers, wherever the file has them."""
    numbers = np.asarray(checkpoint.read(SOURCE)[tensor])
    data = (folder / name).read_bytes()
    place = max(data.find(numbers.tobytes()), data.find(np.ascontiguousarray(numbers.T).tobytes()))
    assert place > 0
    flip(folder / name, place + 40)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "orbax"])
@pytest.mark.parametrize("shard_size", [None, "80KB"])
def test_the_damaged_tensor_is_named(name, shard_size, tmp_path):
    convert(SOURCE, tmp_path, name, shard_size=shard_size)
    checkpoint.read(tmp_path)
    damage(tmp_path, next(path.name for path in sorted(tmp_path.iterdir()) if holds(path)))
    with pytest.raises(
        CheckpointError, match=r"is damaged: \S*query\S* is not what was saved; copy or download it again"
    ):
        checkpoint.read(tmp_path)
    assert checkpoint.read(tmp_path, check_digests=False)


def holds(path):
    numbers = np.asarray(checkpoint.read(SOURCE)[TENSOR])
    data = path.read_bytes()
    return numbers.tobytes() in data or np.ascontiguousarray(numbers.T).tobytes() in data


def test_what_of_an_orbax_folder_is_damaged_is_named(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    convert(SOURCE, tmp_path, "orbax")
    checkpoint.read(tmp_path)
    largest = max((tmp_path / "orbax_model").rglob("*"), key=lambda path: path.stat().st_size)
    flip(largest, 1000)
    with pytest.raises(
        CheckpointError, match=rf"{largest.name}: is damaged: (parameters|carried)/\S+ .*not what was saved"
    ):
        checkpoint.read(tmp_path)


@in_both
def test_models_write_and_check_them(framework, tmp_path, monkeypatch):
    cls = model_class(framework)
    model = cls.from_pretrained(SOURCE)
    model.save_pretrained(tmp_path / "x")
    promised = digests.read(tmp_path / "x")
    assert promised.files.keys() == {WEIGHTS_FILE, "config.json", "generation_config.json"}
    assert promised.tensors[WEIGHTS_FILE].keys() == safetensors.read(tmp_path / "x" / WEIGHTS_FILE).keys()
    cls.from_pretrained(tmp_path / "x")
    damage(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"check_digests=False"):
        cls.from_pretrained(tmp_path / "x")
    with pytest.raises(CheckpointError, match=rf"{TENSOR} is not what was saved"):
        cls.from_encoder_decoder_pretrained(tmp_path / "x", SOURCE)
    cls.from_encoder_decoder_pretrained(tmp_path / "x", SOURCE, encoder_check_digests=False)
    cls.from_pretrained(tmp_path / "x", check_digests=False)
    monkeypatch.setenv(digests.VARIABLE, "0")
    cls.from_pretrained(tmp_path / "x")


def test_texts_are_checked_too(tmp_path):
    convert(READER, tmp_path)
    flip(tmp_path / "generation_config.json", -3)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: is not what was saved"):
        checkpoint.read(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(ProcessorError, match=r"tokenizer\.json: is not what was saved; .*delete ved_digests\.json"):
        _ = Processor.from_pretrained(tmp_path).tokenizer
    assert Processor.from_pretrained(tmp_path, check_digests=False).tokenizer
    flip(tmp_path / "generation_config.json", -3)
    checkpoint.read(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not what was saved"):  # and does not travel along
        convert(tmp_path, tmp_path / "x")


def test_weights_that_others_wrote_over_are_explained(tmp_path):
    convert(SOURCE, tmp_path)
    tensors = {name: np.asarray(x) + 1 for name, x in safetensors.read(tmp_path / WEIGHTS_FILE).items()}
    safetensors.write(tmp_path / WEIGHTS_FILE, tensors)
    with pytest.raises(CheckpointError, match=r"holds other numbers than were saved, in every .* delete ved_digests"):
        checkpoint.read(tmp_path)
    del tensors[TENSOR]
    safetensors.write(tmp_path / WEIGHTS_FILE, tensors)
    with pytest.raises(CheckpointError, match=rf"has not the tensors that were saved: it differs in {TENSOR}"):
        checkpoint.read(tmp_path)
    (tmp_path / digests.FILE).unlink()
    assert checkpoint.read(tmp_path).keys() == tensors.keys()


def test_digests_follow_what_is_written_on_purpose(tmp_path):
    convert(READER, tmp_path)
    config = VisionEncoderDecoderConfig.from_pretrained(tmp_path)
    config.note = "mine"
    config.save_pretrained(tmp_path)
    processor = Processor.from_pretrained(tmp_path)
    processor.tokenizer.add_tokens(["more"])
    processor.save_pretrained(tmp_path)
    checkpoint.read(tmp_path)
    assert "more" in Processor.from_pretrained(tmp_path).tokenizer.get_vocab()
    convert(tmp_path, tmp_path, "flax")  # a second format beside the first: both are known
    assert {WEIGHTS_FILE, "flax_model.msgpack", "tokenizer.json"} <= digests.read(tmp_path).files.keys()
    for name in FORMATS["flax"].name, FORMATS["safetensors"].name:
        checkpoint.read(tmp_path, [name])
    shutil.copytree(tmp_path, tmp_path / "copy")
    convert(SOURCE, tmp_path / "copy", "torch")  # another model over it: its tokenizer stays, and its digest
    promised = digests.read(tmp_path / "copy").files
    assert promised["tokenizer.json"] == digests.of_file(tmp_path / "tokenizer.json")
    assert WEIGHTS_FILE not in promised


def test_digests_that_are_damaged_or_hostile(tmp_path):
    convert(SOURCE, tmp_path)
    path = tmp_path / digests.FILE
    for place in range(3, path.stat().st_size, 97):
        flip(path, place)
        with pytest.raises(CheckpointError, match=r"ved_digests\.json: damaged"):
            digests.read(tmp_path)
        flip(path, place)
    path.write_text(digests.Digests({"../x": "0"}, {}).to_json())
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        checkpoint.read(tmp_path)
    about = {"algorithm": "md5", "files": {}, "tensors": {}}
    path.write_text(json.dumps({"about": about, "digest": digests.of_values(about)}))
    with pytest.raises(CheckpointError, match="its algorithm is 'md5'"):
        checkpoint.read(tmp_path)


def test_the_command_line_skips_them_when_asked(tmp_path, capsys):
    convert(SOURCE, tmp_path / "x")
    damage(tmp_path / "x")
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "y")]) == 2
    assert "--no-check-digests" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "y"), "--no-check-digests"]) == 0
    checkpoint.read(tmp_path / "y")
