"""Training data from Hugging Face datasets and ArrayRecord files."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("datasets")

from tests.training_data import WORDS, opened, picture, png, texts
from ved_core.errors import DataError, SampleError
from ved_core.processing import Processor
from ved_flax.train.data import DataConfig
from ved_flax.train.data.array_record import write_array_record
from ved_flax.train.data.batches import training_batches
from ved_flax.train.data.sources import open_source


def test_saved_datasets(tmp_path: Path, processor: Processor) -> None:
    import datasets

    rows = {"image": [picture(i) for i in range(5)], "text": WORDS[:5], "key": [f"k{i}" for i in range(5)]}
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "key": datasets.Value("string")}
    )
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(tmp_path / "one")
    source = opened(tmp_path / "one", id_column="key")
    assert texts(source) == [(f"k{i}", (WORDS[i],)) for i in range(5)]
    config = DataConfig(source=str(tmp_path / "one"), shuffle=False)
    with training_batches(config, processor, batch_size=5) as batches:
        assert np.array_equal(next(batches)["pixel_values"], processor.pixel_values([picture(i) for i in range(5)]))
    assert isinstance(source[0].image, bytes)  # decoded in one place only
    for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4]):  # made again, as on another machine; and another one
        dataset.select(order).save_to_disk(tmp_path / "other")
        assert (opened(tmp_path / "other").fingerprint == source.fingerprint) == (order[0] == 0)

    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "two")
    assert len(opened(tmp_path / "two", split="test")) == 1
    with pytest.raises(DataError, match=r"splits train, test; set data\.split"):
        opened(tmp_path / "two")
    with pytest.raises(DataError, match=r"and no caption; set data\.text_column"):
        opened(tmp_path / "one", text_column="caption")
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        opened(tmp_path / "one")


def test_datasets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*names: Any, split: str) -> Any:
        asked.append((*names, split))
        return datasets.Dataset.from_dict({"image": [png(1)], "text": ["one"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts(opened("hub:user/lines", subset="de", split="train[:9%]")) == [("0", ("one",))]
    config = DataConfig(evaluation_source="hub:user/lines", split="train", evaluation_split="test")
    assert open_source(config, evaluation=True)[0].image == png(1)
    assert asked == [("user/lines", "de", "train[:9%]"), ("user/lines", None, "test")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ved\[train\]'"):
        opened("hub:user/lines", split="train")


def test_datasets_without_images_of_their_own(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "saved"
    datasets.Dataset.from_dict({"image": ["a.png", None], "text": [["one", "uno"], ["two"]]}).save_to_disk(path)
    source = opened(path, image_folder=str(tmp_path))
    assert (source[0].image, source[0].texts) == (tmp_path / "a.png", ("one", "uno"))
    with pytest.raises(SampleError, match="row 1: no image"):
        source[1]
    with pytest.raises(SampleError, match=r"row 0: image holds paths; set data\.image_folder"):
        opened(path)[0]


def field(number: int, content: bytes) -> bytes:
    """A protobuf field with a length below 2**14."""
    return bytes([number << 3 | 2, len(content) & 0x7F | 0x80, len(content) >> 7]) + content


def example(**features: bytes) -> bytes:
    """A tf.train.Example."""
    entries = (
        field(1, field(1, name.replace("__", "/").encode()) + field(2, field(1, field(1, value))))
        for name, value in features.items()
    )
    return field(1, b"".join(entries))


def test_array_records(tmp_path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "a.array_record"
    assert write_array_record(((f"k{i}", png(i), [WORDS[i], "x"]) for i in range(5)), path) == 5
    source = opened(path, id_column="id")
    assert texts(source) == [(f"k{i}", (WORDS[i], "x")) for i in range(5)]
    assert source[3].image == png(3)
    assert texts(opened(path))[1][0] == "record 1"

    writer = ArrayRecordWriter(str(tmp_path / "b.array_record"), "group_size:1")
    for record in (
        example(image__encoded=png(1), text="ä".encode()),
        b"\x0a\xff",
        b"\x93\x01\x02\x03",
        b"\x0a\x05ab",
        example(text=b"a"),
    ):
        writer.write(record)
    writer.close()
    source = opened(tmp_path / "b.array_record")
    assert (source[0].image, source[0].texts) == (png(1), ("ä",))
    problems = ["ends too early", "a msgpack list, not a map", "ends too early", r"no bytes in .*but \['text'\]"]
    for index, match in enumerate(problems, start=1):
        with pytest.raises(SampleError, match=f"record {index}: .*{match}"):
            source[index]
    assert len(opened(tmp_path / "*.array_record")) == 10
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(DataError, match="not a whole ArrayRecord file"):
        opened(path)
