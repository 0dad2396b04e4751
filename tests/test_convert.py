"""Converting, joining and taking apart checkpoints, as functions and on the command line."""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from conversion import checkpoint, originals
from conversion.convert import convert, join
from conversion.formats import FORMATS, safetensors, torch_bin
from conversion.listing import describe
from tests import cases
from tests.cases import FIXTURES, READER, ROOT, WEIGHTS_FILE
from tests.formats import SOURCES, changed, content, extra, rounded, set_config, texts
from tests.hub_server import serve
from tests.originals import random_original
from ved_cli import main
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.digests import FILE as DIGESTS
from ved_core.errors import CheckpointError, ConfigError, HubError

PROJECTED = FIXTURES / "vit-bert"
"""A model with a projection between its halves."""


def model_class(framework):
    if framework == "flax":
        pytest.importorskip("flax")
        from ved_flax import FlaxVisionEncoderDecoderModel

        return FlaxVisionEncoderDecoderModel
    pytest.importorskip("torch")
    from ved_torch import VisionEncoderDecoderModel

    return VisionEncoderDecoderModel


in_both = pytest.mark.parametrize("framework", ["flax", "torch"])


def test_everything_travels_along(tmp_path):
    shutil.copytree(READER, tmp_path / "source")
    (tmp_path / "source" / "README.md").write_text("about")
    (tmp_path / "source" / "optimizer.pt").write_bytes(b"no")
    (tmp_path / "source" / "runs").mkdir()
    convert(tmp_path / "source", tmp_path / "target", "torch")
    assert texts(tmp_path / "target") == texts(tmp_path / "source")
    names = {path.name for path in (tmp_path / "source").iterdir()} - {WEIGHTS_FILE, "optimizer.pt", "runs"}
    assert {path.name for path in (tmp_path / "target").iterdir()} == names | {"pytorch_model.bin", DIGESTS}


@pytest.mark.parametrize(("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp32", np.float32)])
def test_dtypes(name, dtype, tmp_path):
    source = rounded(FIXTURES / "vit-gpt2", tmp_path / "source", np.float64)
    convert(source, tmp_path / "target", "flax", dtype=name)
    found, expected = checkpoint.read(tmp_path / "target"), checkpoint.read(source)
    for key, tensor in found.items():
        assert tensor.tobytes() == np.asarray(expected[key]).astype(dtype).tobytes()
    config = VisionEncoderDecoderConfig.from_pretrained(tmp_path / "target")
    assert config.torch_dtype == np.dtype(dtype).name


def test_values_too_large_leave_nothing_behind(tmp_path):
    shutil.copytree(FIXTURES / "vit-gpt2", tmp_path / "source")
    extra(tmp_path / "source", {"enc_to_dec_proj.bias": np.full(24, 1e6, np.float32)})
    with pytest.raises(CheckpointError, match=r"enc_to_dec_proj.bias: values of up to 1e\+06 are too large"):
        convert(tmp_path / "source", tmp_path / "target", dtype="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_another_format_beside_the_first(tmp_path):
    shutil.copytree(READER, tmp_path / "x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    convert(tmp_path / "x", tmp_path / "x", "flax")
    after = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    assert after.pop("flax_model.msgpack")
    assert after.pop(DIGESTS)
    assert after == before
    with pytest.raises(CheckpointError, match="is the source's own folder"):
        convert(tmp_path / "x", tmp_path / "x", dtype="bf16")


def test_a_target_loses_the_model_that_it_had_and_keeps_the_rest(tmp_path):
    convert(FIXTURES / "swin-bert", tmp_path / "x", "torch", shard_size="40KB")
    (tmp_path / "x" / "notes").write_text("mine")
    convert(READER, tmp_path / "x", "flax")
    weights = {path.name for path in (tmp_path / "x").iterdir() if any(f.owns(path.name) for f in FORMATS.values())}
    assert weights == {"flax_model.msgpack"}
    assert (tmp_path / "x" / "notes").read_text() == "mine"


def test_impossible_targets(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        convert(READER, tmp_path / "file")
    with pytest.raises(CheckpointError, match="'gguf' is no format; known are safetensors, torch"):
        convert(READER, tmp_path / "x", "gguf")
    with pytest.raises(CheckpointError, match="dtype 'int8' should be one of bf16, fp16, fp32"):
        convert(READER, tmp_path / "x", dtype="int8")
    convert(READER, tmp_path / "orbax", "orbax")
    with pytest.raises(CheckpointError, match="lies inside the source"):
        convert(tmp_path / "orbax", tmp_path / "orbax" / "orbax_model" / "x")
    assert not (tmp_path / "x").exists()


def test_sources_as_files_and_names(tmp_path, monkeypatch):
    convert(READER, tmp_path / "torch", "torch")
    convert(tmp_path / "torch" / "pytorch_model.bin", tmp_path / "from-file")
    shutil.copy(tmp_path / "torch" / "pytorch_model.bin", tmp_path / "alone.pt")
    with pytest.raises(ConfigError, match="a checkpoint folder needs a config"):
        convert(tmp_path / "alone.pt", tmp_path / "x")
    convert(tmp_path / "alone.pt", tmp_path / "with-config", config=READER / "config.json")
    with pytest.raises(HubError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "x")
    for folder in ("from-file", "with-config"):
        assert content(tmp_path / folder) == content(READER)


@pytest.mark.parametrize("name", ["flax", "orbax"])
def test_a_hub_serves_any_format(name, tmp_path):
    """Only the first format is fetched."""
    convert(READER, tmp_path / "repo", name)
    (tmp_path / "repo" / "tf_model.h5").write_text("the second")
    if name == "orbax":
        (tmp_path / "repo" / "tf_model.h5").unlink()
    with serve({"owner/model": tmp_path / "repo"}) as hub:
        command = [sys.executable, "-m", "conversion", "owner/model", str(tmp_path / "target")]
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
        }
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / "target") == content(READER)
        assert not any(file.endswith(".h5") for file in hub.files())
        again = [*command[:-1], str(tmp_path / "again")]
        subprocess.run(again, env=environment | {"HF_HUB_OFFLINE": "1"}, cwd=ROOT, check=True, capture_output=True)
    assert content(tmp_path / "again") == content(READER)


# Halves ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_a_model_taken_apart_and_joined_is_itself(source, tmp_path):
    formats = list(FORMATS)
    choice = sum(map(ord, source))  # every format comes by
    for part in ("encoder", "decoder"):
        convert(SOURCES[source], tmp_path / part, formats[choice % len(formats)], part=part)
        choice += 1
    join(tmp_path / "encoder", tmp_path / "decoder", tmp_path / "joined")
    original = {name: x for name, x in content(SOURCES[source]).items() if name in content(tmp_path / "joined")}
    assert content(tmp_path / "joined").items() >= original.items()
    convert(SOURCES[source], tmp_path / "whole")
    assert content(tmp_path / "joined") == content(tmp_path / "whole")
    before, after = (
        VisionEncoderDecoderConfig.from_pretrained(folder) for folder in (SOURCES[source], tmp_path / "joined")
    )
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        assert after.get(name) == before.get(name)
    kept = {name: text for name, text in texts(tmp_path / "joined").items() if name != "config.json"}
    assert kept == {name: text for name, text in texts(SOURCES[source]).items() if name != "config.json"}


@in_both
def test_the_projection_is_not_lost(framework, tmp_path):
    """What loading the two halves of a model, each saved by itself, loses in other libraries."""
    cls = model_class(framework)
    whole = cls.from_pretrained(PROJECTED)
    convert(PROJECTED, tmp_path / "encoder", "flax", part="encoder")
    convert(PROJECTED, tmp_path / "decoder", "tf", part="decoder")
    assert (tmp_path / "decoder" / "enc_to_dec_proj.safetensors").is_file()
    joined = cls.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    batch = cases.inputs(json.loads((PROJECTED / "config.json").read_text()))
    one, other = (model(batch.pixel_values, batch.decoder_input_ids).logits for model in (whole, joined))
    assert float(abs(one - other).max()) == 0.0


@in_both
def test_a_projection_of_another_width_is_a_new_one(framework, tmp_path, caplog):
    cls = model_class(framework)
    convert(PROJECTED, tmp_path / "decoder", part="decoder")
    convert(FIXTURES / "vit-gpt2", tmp_path / "encoder", part="encoder")
    set_config(tmp_path / "decoder")
    safetensors.write(
        tmp_path / "decoder" / "enc_to_dec_proj.safetensors",
        {"enc_to_dec_proj.weight": np.ones((24, 7), np.float32), "enc_to_dec_proj.bias": np.ones(24, np.float32)},
    )
    cls.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    assert "projection (2 tensors" in caplog.text
    with pytest.raises(CheckpointError, match="no projection from 32 to 24"):
        join(tmp_path / "encoder", tmp_path / "decoder", tmp_path / "joined")


def test_a_damaged_projection_is_named(tmp_path):
    convert(PROJECTED, tmp_path / "decoder", part="decoder")
    safetensors.write(tmp_path / "decoder" / "enc_to_dec_proj.safetensors", {"weight": np.ones(3, np.float32)})
    changed(tmp_path / "decoder")
    with pytest.raises(CheckpointError, match=r"should hold enc_to_dec_proj.bias, enc_to_dec_proj.weight"):
        join(PROJECTED, tmp_path / "decoder", tmp_path / "joined")


def test_halves_out_of_checkpoints_with_more(tmp_path):
    """Other heads stay behind; a decoder without cross-attention is not joined."""
    convert(PROJECTED, tmp_path / "encoder", part="encoder")
    extra(tmp_path / "encoder", {"classifier.weight": np.ones((2, 32), np.float32)})
    with pytest.raises(CheckpointError, match=r"1 are unexpected: classifier\.weight"):
        convert(tmp_path / "encoder", tmp_path / "x", "flax")
    convert(tmp_path / "encoder", tmp_path / "bare", "flax", part="encoder")
    assert not [name for name in checkpoint.read(tmp_path / "bare") if "classifier" in name]
    join(PROJECTED, PROJECTED, tmp_path / "same")
    assert content(tmp_path / "same") == content(PROJECTED)
    convert(PROJECTED, tmp_path / "decoder", part="decoder")
    tensors = {name: x for name, x in checkpoint.read(tmp_path / "decoder").items() if "crossattention" not in name}
    safetensors.write(tmp_path / "decoder" / WEIGHTS_FILE, tensors)
    changed(tmp_path / "decoder")
    with pytest.raises(CheckpointError, match=r"has no cross-attention .*from_encoder_decoder_pretrained makes one"):
        join(PROJECTED, tmp_path / "decoder", tmp_path / "x")
    with pytest.raises(ConfigError, match="vit is an image encoder"):
        join(PROJECTED, tmp_path / "encoder", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# The command line -----------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path, capsys):
    assert main(["convert", str(READER), str(tmp_path / "a"), "--to", "flax", "--dtype", "bf16"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    assert main(["convert", "--list", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "decoder/transformer/h/0/attn/c_attn/kernel" in out
    assert "decoder.transformer.h.0.attn.c_attn.weight -> decoder.blocks.0.attn.q, decoder.blocks.0.attn.k" in out
    assert "vit + gpt2, Flax msgpack" in out
    assert "487,680 parameters; 156 tensors of bfloat16" in out
    assert "tied: decoder.lm_head.weight = decoder.transformer.wte.weight" in out
    for part in ("encoder", "decoder"):
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / part), "--to", "torch", "--part", part]) == 0
    halves = ["--encoder", str(tmp_path / "encoder"), "--decoder", str(tmp_path / "decoder")]
    assert main(["convert", str(tmp_path / "joined"), *halves, "--to", "tf", "--shard-size", "300KB"]) == 0
    capsys.readouterr()
    wrong = [
        (["x"], "give SOURCE and TARGET"),
        (["x", "y", *halves], "give TARGET alone"),
        (["x", "--encoder", "y"], "give both --encoder and --decoder"),
        (["x", "y", "--list"], "--list takes one SOURCE"),
        ([str(READER), str(tmp_path / "x"), "--from", "tf"], "no TensorFlow h5 weights are there"),
    ]
    for arguments, message in wrong:
        assert main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_disk_that_refuses_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    from conversion.formats import files

    def full(file, tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "put", full)
    assert main(["convert", str(READER), str(tmp_path / "x")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_listings_know_every_tensor(name, tmp_path):
    for source in ("vit-bert", "swin-bert"):
        convert(FIXTURES / source, tmp_path / name, name)
        listing = describe(tmp_path / name)
        roles = {line.role for line in listing.lines}
        assert roles <= {"parameter", "carried", "buffer", "copy"}
        assert listing.missing == []
        model = {row for row in checkpoint.read(FIXTURES / source) if "position_index" not in row}
        stored = sum(np.asarray(x).size for row, x in checkpoint.read(FIXTURES / source).items() if row in model)
        assert listing.count("parameter") + listing.count("carried") == stored


def test_listings_show_what_does_not_fit(tmp_path):
    shutil.copytree(PROJECTED, tmp_path / "x")
    tensors = {name: np.array(x) for name, x in checkpoint.read(tmp_path / "x").items()}
    tensors["decoder.more"] = tensors.pop("enc_to_dec_proj.bias")
    safetensors.write(tmp_path / "x" / WEIGHTS_FILE, tensors)
    listing = describe(tmp_path / "x")
    assert [line.name for line in listing.lines if line.role == "unexpected"] == ["decoder.more"]
    assert listing.missing == ["enc_to_dec_proj.bias"]


@pytest.mark.parametrize("case", ["learned", "donut"])
def test_originals_are_converted_and_listed(case, tmp_path):
    """A training script's file with the original layout in it."""
    torch = pytest.importorskip("torch")
    original = random_original(case)
    state = {name: torch.tensor(x) for name, x in original.items()}
    torch.save({"model": state, "args": argparse.Namespace(lr=1), "cfg": {"lr": 1}}, tmp_path / "checkpoint.pt")
    convert(tmp_path / "checkpoint.pt", tmp_path / "x", "flax")
    expected = originals.translate(original, "")
    assert VisionEncoderDecoderConfig.from_pretrained(tmp_path / "x").encoder == expected.config.encoder
    found = checkpoint.read(tmp_path / "x")
    assert found.keys() == expected.tensors.keys()
    assert all(np.array_equal(found[name], x) for name, x in expected.tensors.items())
    listing = describe(tmp_path / "checkpoint.pt")
    assert {line.role for line in listing.lines} == {"parameter", "buffer"}
    assert listing.missing == []


def test_the_comparison(tmp_path, capsys):
    pytest.importorskip("flax")
    pytest.importorskip("torch")
    convert(PROJECTED, tmp_path / "flax", "flax")
    assert main(["convert", "--verify", str(PROJECTED), str(tmp_path / "flax")]) == 0
    out = capsys.readouterr().out
    assert "computed by ved_torch" in out
    assert "computed by ved_flax" in out
    assert "the same within 0.0001" in out
    convert(PROJECTED, tmp_path / "rounded", dtype="bf16")
    assert main(["convert", "--verify", str(PROJECTED), str(tmp_path / "rounded")]) == 0
    name = "decoder.bert.encoder.layer.1.attention.self.query.bias"
    shutil.copytree(PROJECTED, tmp_path / "other")
    extra(tmp_path / "other", {name: np.full(24, 3, np.float32)})
    capsys.readouterr()
    assert main(["convert", "--verify", str(PROJECTED), str(tmp_path / "other")]) == 1
    out = capsys.readouterr().out
    assert "decoder layer 2" in next(line for line in out.splitlines() if "departs first" in line)
    assert main(["convert", "--verify", str(PROJECTED), str(READER)]) == 2
    assert "not of one architecture" in capsys.readouterr().err


def test_no_torch_load_in_the_library():
    for package in ("ved_core", "conversion", "ved_flax", "ved_torch", "ved_cli"):
        for path in Path(ROOT, package).rglob("*.py"):
            code = [line for line in path.read_text().splitlines() if "torch.load(" in line]
            assert not code, path


def test_old_pickles_convert_too(tmp_path):
    torch = pytest.importorskip("torch")
    shutil.copytree(READER, tmp_path / "x")
    tensors = {name: torch.tensor(np.array(x)) for name, x in checkpoint.read(READER).items()}
    torch.save(tensors, tmp_path / "x" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "x" / WEIGHTS_FILE).unlink()
    convert(tmp_path / "x", tmp_path / "y")
    assert content(tmp_path / "y") == content(READER)
    assert torch_bin.read(tmp_path / "x" / "pytorch_model.bin").keys() == tensors.keys()


def test_a_disk_that_is_too_small_for_orbax_is_asked_before(tmp_path, capsys, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: argparse.Namespace(free=1000))
    assert main(["convert", str(READER), str(tmp_path / "x"), "--to", "orbax"]) == 2
    assert capsys.readouterr().err == f"ved: [Errno 28] No space left on device: '{tmp_path / 'x'}'\n"
    assert not list(tmp_path.iterdir())


# What a person meets --------------------------------------------------------------------------------------------------


def test_options_that_would_be_passed_over_are_refused(tmp_path, capsys):
    config = str(READER / "config.json")
    wrong = [
        (["--list", "x", "--to", "tf", "--part", "encoder"], "--to and --part cannot go with --list"),
        (["--verify", "x", "y", "--from", "tf", "--config", config], "--from and --config cannot go with --verify"),
        ([str(READER / WEIGHTS_FILE), str(tmp_path), "--subfolder", "x"], "is a file, which has no revision or subf"),
        ([str(READER / WEIGHTS_FILE), str(tmp_path), "--revision", "x"], "is a file, which has no revision or subf"),
        ([str(READER), ""], "the name of the target is empty"),
        ([str(READER), str(READER), "--config", config], "is the source's own folder"),
    ]
    for arguments, message in wrong:
        assert main(["convert", *arguments]) == 2, arguments
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_config_in_place_of_the_sources(tmp_path):
    convert(PROJECTED, tmp_path / "decoder", "flax", part="decoder")
    (tmp_path / "decoder" / "config.json").rename(tmp_path / "other.json")
    listing = describe(tmp_path / "decoder", config=tmp_path / "other.json")
    assert listing.architecture == "bert"
    assert listing.missing == []
    convert(tmp_path / "decoder", tmp_path / "again", part="decoder", config=tmp_path / "other.json")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "bert"


def test_an_original_is_not_converted_into_its_own_folder(tmp_path):
    """The folder would have weights and no config."""
    safetensors.write(tmp_path / "trocr.safetensors", random_original("learned"))
    with pytest.raises(CheckpointError, match="is the source's own folder"):
        convert(tmp_path / "trocr.safetensors", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trocr.safetensors"]


def test_homes_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(READER / "config.json", tmp_path)
    convert(READER, "~/x", config="~/config.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "x"]


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder or file"):
        checkpoint.read(tmp_path / "x")


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
from ved_cli import main
sys.exit(main(["convert", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("name", FORMATS)
def test_a_disk_that_is_full_in_every_format(name, tmp_path):
    """One line, no crash, nothing left: not even the folders above."""
    if name == "orbax":
        pytest.importorskip("orbax.checkpoint")
    target = tmp_path / "deep" / "x"
    command = [sys.executable, "-c", FULL, str(READER), str(target), "--to", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"ved: [Errno 27] File too large: '{target}'" in done.stderr
    assert name == "orbax" or len(done.stderr.splitlines()) == 1  # whose threads have more to say
    assert not list(tmp_path.iterdir())


def test_integers_do_not_count_as_precision(tmp_path, capsys):
    """Swin's buffers of int64 stay as they are where weights are rounded."""
    pytest.importorskip("torch")
    convert(FIXTURES / "swin-bert", tmp_path / "rounded", dtype="bf16")
    assert main(["convert", "--verify", str(FIXTURES / "swin-bert"), str(tmp_path / "rounded")]) == 0


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1), (HubError, 2)])
def test_how_a_command_ends(error, status, monkeypatch):
    import conversion.command

    def interrupted(options):
        raise error

    monkeypatch.setattr(conversion.command, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["conversion", "x", "y"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("conversion", run_name="__main__")
    assert caught.value.code == status
