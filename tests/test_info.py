"""`ved info`, and links and names that leave a checkpoint's folder."""

import json
import shutil
import zipfile

import pytest

from conversion import checkpoint
from conversion.convert import convert
from tests.cases import FIXTURES, READER, WEIGHTS_FILE
from ved_cli import main
from ved_core.errors import CheckpointError, HubError

SOURCE = FIXTURES / "vit-gpt2"


def info(capsys, *arguments):
    status = main(["info", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_whole_checkpoint(tmp_path, capsys):
    convert(READER, tmp_path, "torch", shard_size="500KB")
    status, found = info(capsys, tmp_path, "--check-digests")
    assert (status, found["loads"], found["config"], found["digests"]) == (0, True, "vit + gpt2", "hold")
    (weights,) = found["weights"]
    assert weights["format"] == "torch"
    assert weights["dtypes"] == ["float32"]
    assert sum(weights["files"].values()) == sum(path.stat().st_size for path in tmp_path.glob("pytorch_model*"))
    assert {each["file"] for each in found["pickles"]} == {path.name for path in tmp_path.glob("*.bin")}
    assert found["pickles"][0]["names"] == [
        *("torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict")
    ]
    assert found["tokenizer"]
    assert found["image_processor"]
    assert found["generation"]["max_length"] == 16
    assert main(["info", str(tmp_path)]) == 0
    assert "vit + gpt2" in capsys.readouterr().out


def test_a_hostile_one_is_shown_and_not_run(tmp_path, capsys):
    shutil.copytree(SOURCE, tmp_path / "x")
    (tmp_path / "x" / WEIGHTS_FILE).write_bytes(b"\0" * 100)
    with zipfile.ZipFile(tmp_path / "x" / "extra.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.")
    (tmp_path / "x" / "modeling\x1b[2J.py").write_text("raise SystemExit")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Evil"}
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    status, found = info(capsys, tmp_path / "x")
    assert (status, found["loads"]) == (1, False)
    assert "or damaged" in found["weights"][0]["problem"]
    assert found["pickles"] == [{"file": "extra.pt", "names": ["os.system"], "refused": ["os.system"], "problem": None}]
    assert found["remote_code"] == ["config.json: auto_map = {'AutoModel': 'modeling.Evil'}"]
    assert main(["info", str(tmp_path / "x")]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "os.system" in printed


def test_links_that_leave_the_folder(tmp_path, capsys, monkeypatch):
    shutil.copytree(SOURCE, tmp_path / "x")
    (tmp_path / "x" / WEIGHTS_FILE).unlink()
    (tmp_path / "x" / WEIGHTS_FILE).symlink_to(SOURCE / WEIGHTS_FILE)
    for load, error in ((checkpoint.read, CheckpointError), (lambda x: convert(x, tmp_path / "y"), HubError)):
        with pytest.raises(error, match=rf"{WEIGHTS_FILE}: is a link out of its folder"):
            load(tmp_path / "x")
    status, found = info(capsys, tmp_path / "x")
    assert status == 1
    assert "is a link out of its folder" in found["link"]
    inside = tmp_path / "models--a--b" / "snapshots" / "c"
    inside.mkdir(parents=True)
    shutil.copytree(SOURCE, inside.parent.parent / "blobs")
    for path in SOURCE.iterdir():
        (inside / path.name).symlink_to(f"../../blobs/{path.name}")
    assert checkpoint.read(inside).keys() == checkpoint.read(SOURCE).keys()
    (tmp_path / "x" / WEIGHTS_FILE).unlink()
    (tmp_path / "x" / WEIGHTS_FILE).symlink_to(inside.parent.parent / "blobs" / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        checkpoint.read(tmp_path / "x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert checkpoint.read(tmp_path / "x")


@pytest.mark.parametrize("names", [[".."], ["a/.."], ["../x"], [""], ["."], "..", {"..": 1}, [5], None])
def test_an_interrupted_save_removes_nothing_outside(names, tmp_path):
    shutil.copytree(SOURCE, tmp_path / "outer" / "x")
    (tmp_path / "outer" / "mine").write_text("mine")
    commit = tmp_path / "outer" / "x" / ".ved-commit"
    commit.mkdir()
    (commit / ".ved-removed.json").write_text(json.dumps(names))
    with pytest.raises(CheckpointError, match="a save was interrupted"):
        checkpoint.read(tmp_path / "outer" / "x")
    assert (tmp_path / "outer" / "mine").read_text() == "mine"
    assert (tmp_path / "outer" / "x" / "config.json").exists()
