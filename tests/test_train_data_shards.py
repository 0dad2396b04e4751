"""Training data from webdataset shards."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("datasets")

from tests.training_data import WORDS, opened, picture, png, reader_processor, texts
from ved_core.errors import DataError, SampleError
from ved_flax.train.data import DataConfig
from ved_flax.train.data.batches import training_batches


def shard(path: Path, members: list[tuple[str, bytes]], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three samples each."""
    for number in range(2):
        members = []
        for i in range(3 * number, 3 * number + 3):
            members += [(f"d/{i:04d}.png", png(i)), (f"d/{i:04d}.txt", WORDS[i].encode())]
        shard(tmp_path / f"s-{number:03d}.tar", [("README", b"no sample"), *members])
    return tmp_path


@pytest.mark.parametrize("name", ["s-{000..001}.tar", "s-*.tar"])
def test_shards(shards: Path, name: str, tmp_path: Path) -> None:
    source = opened(shards / name, index_folder=str(tmp_path / "kept"))
    assert texts(source) == [(f"d/{i:04d}", (WORDS[i],)) for i in range(6)]
    config = DataConfig(source=str(shards / name), index_folder=str(tmp_path / "kept"))
    with training_batches(config, reader_processor(), batch_size=4) as batches:
        batch = next(batches)
    numbers = [int(name[-4:]) for name in batch["ids"]]
    assert np.array_equal(batch["pixel_values"], reader_processor().pixel_values([picture(i) for i in numbers]))


def test_texts_in_json_members(tmp_path: Path) -> None:
    record = json.dumps({"caption": ["one", "uno"], "key": 5}).encode()
    path = shard(tmp_path / "a.tar", [("1.jpg", png(1)), ("1.json", record), ("1.other.png", png(2))])
    options = {"index_folder": str(tmp_path), "image_column": "other.png", "text_column": "caption", "id_column": "key"}
    (sample,) = [opened(path, **options)[0]]
    assert (sample.id, sample.image, sample.texts) == ("5", png(2), ("one", "uno"))


def test_broken_members_are_bad_samples(tmp_path: Path) -> None:
    members = [("1.txt", b"no image"), ("2.png", png(2)), ("3.png", png(3)), ("3.txt", b"\xff"), ("4.png", b"")]
    members += [("4.txt", b"x"), ("5.png", png(5)), ("5.json", b"{")]
    source = opened(shard(tmp_path / "a.tar", members), index_folder=str(tmp_path))
    for index, match in enumerate(
        ["1: no image", "2: no text", "3: its text is not UTF-8", "", "5: its .json is not JSON"]
    ):
        if match:
            with pytest.raises(SampleError, match=match):
                source[index]
    assert source[3].image == b""  # which the processor refuses


@pytest.mark.parametrize("damage", ["cut in a member", "cut between members", "header", "gzip", "empty", "no tar"])
def test_damaged_shards_are_refused(tmp_path: Path, damage: str) -> None:
    members = [(f"{i}.{kind}", bytes(300)) for i in range(3) for kind in ("png", "txt")]
    path = shard(tmp_path / "a.tar", members, "w:gz" if damage == "gzip" else "w")
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[2 * 1024] ^= 0xFF
    cut = {"cut in a member": 2 * 1024 + 600, "cut between members": 2 * 1024, "empty": 0}.get(damage)
    path.write_bytes(b"no tar" * 1000 if damage == "no tar" else content[:cut])
    with pytest.raises(DataError, match=r"a\.tar: is not a whole, uncompressed tar file"):
        opened(path, index_folder=str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


def test_a_shards_index_is_kept_while_the_shard_is_as_it_was(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ved_flax.train.data import shards as module

    scanned: list[str] = []
    scan = module.scan
    monkeypatch.setattr(module, "scan", lambda path: scanned.append(path.name) or scan(path))
    folder = shards / "kept"
    first = opened(shards / "s-*.tar", index_folder=str(folder))
    assert texts(opened(shards / "s-*.tar", index_folder=str(folder))) == texts(first)
    assert scanned == ["s-000.tar", "s-001.tar"]
    shard(shards / "s-001.tar", [("x.png", png(7)), ("x.txt", b"seven")])
    other = opened(shards / "s-*.tar", index_folder=str(folder))
    assert [name for name, _ in texts(other)] == ["d/0000", "d/0001", "d/0002", "x"]
    assert other.fingerprint != first.fingerprint
    assert scanned[2:] == ["s-001.tar"]
    for path in folder.iterdir():  # damaged ones are made again
        path.write_bytes(path.read_bytes()[:100])
    assert texts(opened(shards / "s-*.tar", index_folder=str(folder))) == texts(other)
    (shards / "file").write_bytes(b"")
    assert len(opened(shards / "s-*.tar", index_folder=str(shards / "file"))) == 4  # cannot be kept: scanned again
