"""Training data: what is in which batch, from which source, and what happens to bad samples."""

import csv
import dataclasses
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cases import READER, ROOT
from ved_core.errors import ConfigError, DataError, SampleError
from ved_core.processing import Processor
from ved_flax.train.data import DataConfig
from ved_flax.train.data.samples import Sample, digest

pytest.importorskip("grain")
pytest.importorskip("datasets")

from ved_flax.train.data.array_record import write_array_record
from ved_flax.train.data.augment import augmented
from ved_flax.train.data.batches import Batches, Order, evaluation_batches, training_batches
from ved_flax.train.data.labels import Labels
from ved_flax.train.data.sources import open_source

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained(READER)


def picture(number: int) -> Image.Image:
    """Each number is another picture."""
    pixels = np.random.default_rng(number).integers(0, 256, (10, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    content = io.BytesIO()
    picture(number).save(content, "PNG")
    return content.getvalue()


class Numbers:
    """A source of so many pictures, some of them bad."""

    def __init__(self, size: int, bad: tuple[int, ...] = ()) -> None:
        self.size, self.bad = size, bad
        self.fingerprint = digest(str(size))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise SampleError(f"sample {index}: torn")
        return Sample(str(index), picture(index), (WORDS[index % len(WORDS)],))

    def name(self, index: int) -> str:
        return str(index)


@pytest.fixture
def train(processor: Processor):
    """Batches of so many pictures."""
    opened: list[Batches] = []

    def make(size: int = 10, *, bad: tuple[int, ...] = (), evaluation: bool = False, **options: Any) -> Batches:
        fields = {field.name for field in dataclasses.fields(DataConfig)}
        config = DataConfig(**{"max_length": 6} | {name: options.pop(name) for name in fields & options.keys()})
        function = evaluation_batches if evaluation else training_batches
        opened.append(function(config, processor, source=Numbers(size, bad), **{"batch_size": 4} | options))
        return opened[-1]

    yield make
    for batches in opened:
        batches.close()


def taken(batches: Batches, count: int) -> list[list[str]]:
    return [next(batches)["ids"] for _ in range(count)]


def joined(lists: Iterable[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(lists))


def assert_equal(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]) if isinstance(value, np.ndarray) else value == other[name], name


# Order ---------------------------------------------------------------------------------------------------------------


def test_a_batch(train: Any, processor: Processor) -> None:
    batch = next(train(shuffle=False))
    assert {name: (x.shape, x.dtype) for name, x in batch.items() if isinstance(x, np.ndarray)} == {
        "pixel_values": ((4, 3, 48, 48), np.float32),
        "labels": ((4, 6), np.int32),
        "weight": ((4,), np.float32),
    }
    assert batch["ids"] == ["0", "1", "2", "3"]
    assert batch["references"] == [["one"], ["two"], ["three"], ["four"]]
    assert np.array_equal(batch["pixel_values"], processor.pixel_values([picture(i) for i in range(4)]))
    assert batch["weight"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing_and_a_state_goes_from_any_number_to_any(
    processor: Processor, tmp_path: Path, workers: int
) -> None:
    manifest = written(tmp_path, [(f"{i}.png", WORDS[i]) for i in range(7)])
    config = DataConfig(source=str(manifest), max_length=6, augment=0.5)
    threads = training_batches(config, processor, batch_size=4)
    whole = [next(threads) for _ in range(6)]
    other = training_batches(dataclasses.replace(config, workers=workers), processor, batch_size=4)
    with training_batches(config, processor, batch_size=4) as first, other:
        for batch in whole[:3]:
            assert_equal(next(first), batch)
        other.set_state(json.loads(json.dumps(first.get_state())))
        for batch in whole[3:5]:
            assert_equal(next(other), batch)
        threads.set_state(other.get_state())
        assert_equal(next(threads), whole[5])
    threads.close()


KILLED = """
import multiprocessing, os, signal, sys, time

from tests.test_train_data import READER, DataConfig, Processor, training_batches

if __name__ == "__main__":
    config = DataConfig(source=sys.argv[1], max_length=6, workers=2)
    batches = training_batches(config, Processor.from_pretrained(READER), batch_size=4)
    ids = [next(batches)["ids"] for _ in range(2)]
    workers = [process.pid for process in multiprocessing.active_children()]
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    ids += [next(batches)["ids"] for _ in range(20)]
    print(*workers, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_outlive_sigterm_and_end_with_a_killed_parent(tmp_path: Path) -> None:
    manifest = written(tmp_path, [(f"{i}.png", WORDS[i]) for i in range(7)])
    (tmp_path / "job.py").write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, tmp_path / "job.py", manifest],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        workers = job.stdout.readline().split()
        job.kill()
    assert len(workers) == 2
    waiting = 300
    while waiting and any(Path("/proc", worker).exists() for worker in workers):
        time.sleep(0.1)
        waiting -= 1
    assert waiting


def test_resumption_at_every_position_gives_the_rest(train: Any) -> None:
    batches, whole, states = train(augment=1.0), [], []
    for _ in range(8):
        states.append(json.loads(json.dumps(batches.get_state())))
        whole.append(next(batches))
    again = train(augment=1.0)
    for at, state in enumerate(states):
        again.set_state(state)
        for batch in whole[at : at + 2]:
            assert_equal(next(again), batch)


def test_another_batch_size_goes_on_behind_the_last_sample(train: Any) -> None:
    ids = joined(taken(train(batch_size=2), 12))
    batches = train(batch_size=4)
    first = joined(taken(batches, 3))
    other = train(batch_size=6)
    other.set_state(batches.get_state())
    assert first + joined(taken(other, 2)) == ids


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_same_global_batches(train: Any, processes: int) -> None:
    whole = taken(train(batch_size=6), 5)
    shares = [train(batch_size=6, process_index=i, process_count=processes) for i in range(processes)]
    assert [joined(next(share)["ids"] for share in shares) for _ in range(5)] == whole
    assert sorted(joined(whole)) == sorted(3 * [str(i) for i in range(10)])


def test_epochs_are_shuffled_each_in_its_own_way(train: Any) -> None:
    ids = np.array(taken(train(12), 9)).reshape(3, 12)
    assert all(sorted(epoch.tolist(), key=int) == [str(i) for i in range(12)] for epoch in ids)
    assert len({tuple(epoch) for epoch in ids}) == 3
    assert taken(train(12, seed=1), 3) != ids[0].reshape(3, 4).tolist()
    assert np.array(taken(train(12, shuffle=False), 6)).reshape(2, 12).tolist() == 2 * [[str(i) for i in range(12)]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_sources_fill_a_batch_by_repeating(train: Any, size: int) -> None:
    assert sorted(next(train(size, batch_size=6))["ids"]) == sorted([str(i) for i in range(size)] * (6 // size))


def test_epochs_end_with_a_masked_tail(train: Any) -> None:
    batches = list(train(epochs=2, batch_size=8))
    assert len(batches) == 3
    assert sorted(joined(batch["ids"] for batch in batches)) == sorted(["", "", "", ""] + 2 * list(map(str, range(10))))
    tail = batches[-1]
    assert tail["weight"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert (tail["labels"][4:] == -100).all()
    assert not tail["pixel_values"][4:].any()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_shows_every_sample_once_and_again(train: Any, processor: Processor, processes: int) -> None:
    shares = [
        train(13, evaluation=True, batch_size=6, process_index=i, process_count=processes, augment=1.0)
        for i in range(processes)
    ]
    for _ in range(2):
        passes = [list(share) for share in shares]
        assert {len(batches) for batches in passes} == {3}
        rows = [
            (w, i)
            for batches in passes
            for batch in batches
            for w, i in zip(batch["weight"], batch["ids"], strict=True)
        ]
        assert sorted(int(name) for weight, name in rows if weight) == list(range(13))
        assert all(name == "" for weight, name in rows if not weight)
        for share in shares:
            share.reset()
    first = next(shares[0])
    assert np.array_equal(first["pixel_values"], processor.pixel_values([picture(int(i)) for i in first["ids"]]))
    shares[0].reset()  # in the middle too
    assert_equal(next(shares[0]), passes[0][0])


def test_batches_that_do_not_divide_are_refused(train: Any) -> None:
    with pytest.raises(ConfigError, match="batch of 4 does not divide over 3"):
        train(process_count=3)
    with pytest.raises(ConfigError, match="process 2 of 2"):
        Order(5, 4, 2, 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"fingerprint": "0"}, "not what it was"), ({"position": -4}, "not a state"), ({"bad": None}, "not a state")],
)
def test_a_state_that_does_not_fit_is_refused(train: Any, change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        train().set_state(train().get_state() | change)


@pytest.mark.parametrize("other", [{"size": 11}, {"seed": 1}, {"shuffle": False}])
def test_a_state_of_other_data_is_refused(train: Any, other: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.seed or data\.shuffle is not what it was"):
        train(**other).set_state(train().get_state())


# Bad samples ---------------------------------------------------------------------------------------------------------


def test_bad_samples_are_named_masked_and_counted(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = train(shuffle=False), train(bad=(1, 6), shuffle=False, max_bad_share=0.2)
    with caplog.at_level(logging.WARNING, logger="ved"):
        for _ in range(5):  # two epochs
            one, other = next(good), next(bad)
            assert one["ids"] == other["ids"]
            kept = np.array([name not in ("1", "6") for name in other["ids"]])
            assert other["weight"].tolist() == kept.tolist()
            assert (other["labels"][~kept] == -100).all()
            assert np.array_equal(one["pixel_values"][kept], other["pixel_values"][kept])
            assert np.array_equal(one["labels"][kept], other["labels"][kept])
    assert [record.getMessage() for record in caplog.records] == [
        "bad sample, left out: sample 1: torn",
        "bad sample, left out: sample 6: torn",
    ]
    assert bad.counts == {"bad_samples": 2, "cut_texts": 0}


def test_more_bad_samples_than_their_share_stop_the_job(train: Any) -> None:
    batches = train(bad=(1, 6, 7), shuffle=False, max_bad_share=0.2)
    next(batches)
    with pytest.raises(DataError, match=r"3 bad samples in epoch 0, where data.max_bad_share = 0.2 allows 2.*sample 7"):
        next(batches)
    state = batches.get_state()
    assert state["bad"] == 3


def test_the_count_of_bad_samples_is_resumed(train: Any) -> None:
    first = train(bad=(1, 6, 7), shuffle=False, max_bad_share=0.2)
    next(first)
    second = train(bad=(1, 6, 7), shuffle=False, max_bad_share=0.2)
    second.set_state(first.get_state())
    with pytest.raises(DataError, match="3 bad samples"):
        next(second)


# Labels --------------------------------------------------------------------------------------------------------------


def test_labels_end_with_the_end_token_and_begin_without_a_start(processor: Processor) -> None:
    labels = Labels(processor.tokenizer, DataConfig(max_length=6))
    ids, cut = labels("one two")
    expected = [
        *processor.tokenizer("one two", add_special_tokens=False)["input_ids"],
        processor.tokenizer.eos_token_id,
    ]
    assert ids.tolist() == expected + [-100] * (6 - len(expected))
    assert not cut
    assert labels("")[0].tolist() == [processor.tokenizer.eos_token_id] + [-100] * 5


def test_long_texts_are_cut_and_counted(train: Any, processor: Processor, caplog: pytest.LogCaptureFixture) -> None:
    batches = train(max_length=1, shuffle=False)
    with caplog.at_level(logging.WARNING, logger="ved"):
        assert next(batches)["labels"].tolist() == [[processor.tokenizer.eos_token_id]] * 4
    assert batches.counts["cut_texts"] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "0: its text is longer than data.max_length = 1, and cut"
    ]
    whole = Labels(processor.tokenizer, DataConfig(max_length=20, special_tokens="none"))("one two three")[0]
    ids, cut = Labels(processor.tokenizer, DataConfig(max_length=2, special_tokens="none"))("one two three")
    assert ids.tolist() == whole[:2].tolist()
    assert cut


class Bert:
    """A tokenizer that encloses texts, and has no end token of its own."""

    eos_token_id, sep_token_id = None, 3

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [2, *ids, 3] if add_special_tokens else ids}


def test_other_tokenizers_and_other_special_tokens() -> None:
    def ids(kind: str, text: str = "ab", **options: Any) -> list[int]:
        return Labels(Bert(), DataConfig(max_length=4, special_tokens=kind), **options)(text)[0].tolist()

    assert ids("end") == [97, 98, 3, -100]
    assert ids("end", end_token_id=9) == [97, 98, 9, -100]
    assert ids("tokenizer") == [2, 97, 98, 3]
    assert ids("tokenizer", "abcd") == [2, 97, 98, 3]
    assert ids("none") == [97, 98, -100, -100]
    with pytest.raises(DataError, match="token 98 of 'ab' is outside of the decoder's vocabulary of 98"):
        ids("none", vocab_size=98)
    Bert.sep_token_id = None
    try:
        with pytest.raises(ConfigError, match="end token"):
            ids("end")
        assert ids("none") == [97, 98, -100, -100]
    finally:
        Bert.sep_token_id = 3


# Augmentation --------------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_seed_epoch_and_sample_only(train: Any) -> None:
    def pixels(**options: Any) -> np.ndarray:
        """Of two epochs of four samples."""
        batches = train(4, shuffle=False, **options)
        return np.stack([next(batches)["pixel_values"] for _ in range(2)])

    plain, one = pixels(), pixels(augment=1.0)
    assert np.array_equal(one, pixels(augment=1.0, batch_size=4))
    assert (one != plain).any(axis=(2, 3, 4)).all()
    assert (one[0] != one[1]).any(axis=(1, 2, 3)).all()  # epochs
    assert (one != pixels(augment=1.0, seed=1)).any(axis=(2, 3, 4)).all()
    some = (pixels(augment=0.5) != plain).any(axis=(2, 3, 4))
    assert 0 < some.sum() < some.size
    still = dict.fromkeys((f"augment_{x}" for x in ("rotation", "shear", "scale", "blur", "contrast", "noise")), 0.0)
    assert np.array_equal(pixels(augment=1.0, **still), plain)


def test_augmentation_cuts_nothing_off() -> None:
    page = np.full((20, 200, 3), 250, np.uint8)
    for row, column in ((2, 2), (2, 194), (14, 2), (14, 194)):
        page[row : row + 4, column : column + 4] = 0
    config = DataConfig(augment_contrast=0.0, augment_noise=0.0, augment_blur=0.0, augment_rotation=5.0)
    for seed in range(20):
        image = augmented(Image.fromarray(page), np.random.default_rng(seed), config)
        dark = 250.0 - np.asarray(image, np.float32)[..., 0]
        size = image.width * image.height / (200 * 20)
        assert 0.7 < dark.sum() / (250 * 64) < 1.3
        assert dark[:, 0].max() < 60 or size > 1  # the border has the page's colour


# Sources -------------------------------------------------------------------------------------------------------------


def written(folder: Path, rows: list[tuple[str, str]], name: str = "list.csv") -> Path:
    """A manifest with its images."""
    folder.mkdir(exist_ok=True)
    for number, (image, _) in enumerate(rows):
        (folder / image).parent.mkdir(exist_ok=True, parents=True)
        (folder / image).write_bytes(png(number))
    path = folder / name
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "text"), *rows])
    return path


def opened(source: Any, **options: Any) -> Any:
    return open_source(DataConfig(source=str(source), **options))


def texts(source: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(sample.id, sample.texts) for sample in (source[i] for i in range(len(source)))]


ODD = [
    ("list.csv", 'image,text\na.png,"one, ""two"""\nb.png,"a\nb"\n', ['one, "two"', "a\nb"]),
    ("list.csv", "\ufeffimage,text\r\na.png,ä€😀\r\n\r\nb.png,\r\n", ["ä€😀", ""]),
    ("list.csv", "text,n,file_name\none,1,a.png\ntwo,2,sub/../b.png\n", ["one", "two"]),
    ("list.tsv", 'image\ttext\na.png\t"one, two\nb.png\t three"\n', ['"one, two', ' three"']),
    (
        "list.jsonl",
        '\ufeff{"image": "a.png", "text": "a\\nb"}\n\n{"text": "\u2028", "image": "b.png"}',
        ["a\nb", "\u2028"],
    ),
]


@pytest.mark.parametrize(("name", "content", "expected"), ODD)
def test_odd_manifests(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    source = opened(tmp_path / name)
    assert [sample for _, (sample,) in texts(source)] == expected
    assert [source[i].image.resolve() for i in (0, 1)] == [tmp_path / "a.png", tmp_path / "b.png"]


def test_manifest_options(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "metadata.jsonl").write_text(
        '{"path": "a.png", "captions": ["one", "two"], "key": 7}\n{"path": "b.png", "captions": "three", "key": 8}\n'
    )
    names = {"image_column": "path", "text_column": "captions", "id_column": "key"}
    source = opened(tmp_path, image_folder=str(tmp_path / "images"), **names)  # the folder of a metadata file
    assert texts(source) == [("7", ("one", "two")), ("8", ("three",))]
    assert source[0].image == tmp_path / "images" / "a.png"
    other = opened(tmp_path, image_folder=str(tmp_path / "images"), **names | {"id_column": None})
    assert other.fingerprint != source.fingerprint


REFUSED = [
    ("list.csv", "", "holds no rows"),
    ("list.csv", "image,text\n", "holds no rows"),
    ("list.csv", "image,words\na.png,b\n", "has no column text.*data.text_column"),
    ("list.csv", "a.png,one\n", "no column image or file_name"),
    ("list.csv", "image,text,text\na.png,b,c\n", "one column twice"),
    ("list.csv", 'image,text\na.png,"one\nb.png,two\n', "line 2: unexpected end of data.*quotes"),
    ("list.csv", "image,text\na.png,one\n../b.png,two\n", "line 3: '../b.png' leaves the image folder"),
    ("list.csv", "image,text\n/etc/passwd,one\n", "leaves the image folder.*data.image_folder"),
    ("list.csv", b"image,text\na.png,\xe9\n", "is not UTF-8"),
    ("list.csv", "image,text\na.png,one,more\n", "1 of 1 rows are bad.*line 2: 3 cells, where the first line has 2"),
    ("list.jsonl", '{"image": "a.png"}\n', "line 1: no text"),
    ("list.jsonl", '{"image": "a.png", "text": 3}\n', "its text is 3"),
    ("list.jsonl", '{"image": "a.png", "text": []}\n', "neither a text nor a list of at least one"),
    ("list.jsonl", '{"image": "a.png", "text": "\\ud800"}\n', "surrogate"),
    ("list.jsonl", '{"image": "a\\u0000.png", "text": "a"}\n', "zero byte"),
    ("list.jsonl", '{"image": null, "text": "a"}\n', "no path of an image"),
    ("list.jsonl", "[1]\n", "not a JSON object"),
    ("list.jsonl", "{\n", "not JSON"),
    ("list.jsonl", "[" * 100_000 + "\n", "not JSON"),
    ("list.txt", "a", "of no known kind"),
]


@pytest.mark.parametrize(("name", "content", "match"), REFUSED)
def test_manifests_that_are_refused(tmp_path: Path, name: str, content: str | bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=match) as caught:
        opened(tmp_path / name)
    assert name in str(caught.value)


def test_rows_that_are_bad_are_bad_samples(tmp_path: Path, processor: Processor) -> None:
    manifest = written(tmp_path, [("a.png", "one"), ("b.png", "two"), ("c.png", "three"), ("d.png", "four")])
    manifest.write_text(manifest.read_text() + "e.png\n")
    (tmp_path / "b.png").write_bytes(png(1)[:60])
    (tmp_path / "c.png").unlink()
    config = DataConfig(source=str(manifest), shuffle=False, max_bad_share=0.6)
    with training_batches(config, processor, batch_size=5) as batches:
        assert next(batches)["weight"].tolist() == [1, 0, 0, 1, 0]
        assert {problem.split(":")[0] for problem in batches._named} == {"b.png", "c.png", f"{manifest}, line 6"}


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        ("", {}, "data.source is not set"),
        ("missing.csv", {}, "no such file"),
        ("gs://bucket/a.tar", {}, "only local files"),
        ("pipe:cat a.tar", {}, "only local files"),
        ("a{5..1}.tar", {}, "count upwards"),
        ("a{0..99999999}.tar", {}, "count upwards"),
        ("a{0..2}.tar", {}, "a0.tar: no such file, of"),
        ("x.csv", {"split": "train"}, "only Hugging Face datasets have splits"),
        ("tests", {}, "a folder with 0 of metadata.csv"),
        ("hub:nobody/nothing-here", {}, "set data.split"),
        ("hub:nobody/nothing-here", {"split": "train"}, "cannot be loaded"),
    ],
)
def test_sources_that_are_refused(source: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        opened(source, **options)


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
def test_shards(shards: Path, name: str, tmp_path: Path, processor: Processor) -> None:
    source = opened(shards / name, index_folder=str(tmp_path / "kept"))
    assert texts(source) == [(f"d/{i:04d}", (WORDS[i],)) for i in range(6)]
    config = DataConfig(source=str(shards / name), index_folder=str(tmp_path / "kept"))
    with training_batches(config, processor, batch_size=4) as batches:
        batch = next(batches)
    numbers = [int(name[-4:]) for name in batch["ids"]]
    assert np.array_equal(batch["pixel_values"], processor.pixel_values([picture(i) for i in numbers]))


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


# Config --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_length", 0), ("max_bad_share", 1.5), ("workers", -1), ("seed", 2**32), ("shuffle", 1)),
        *(("source", None), ("special_tokens", "both"), ("augment", float("nan")), ("split", ""), ("prefetch", True)),
    ],
)
def test_config_values_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name} = .* should be"):
        DataConfig(**{name: value})


def test_config_fields_are_documented_and_checked() -> None:
    from ved_flax.train.data.config import _CHECKS

    names = {field.name for field in dataclasses.fields(DataConfig) if field.metadata["doc"]}
    assert names == set(_CHECKS)
