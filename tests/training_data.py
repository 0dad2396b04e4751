"""What tests of training data share: pictures, sources of them, manifests."""

import contextlib
import csv
import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.cases import READER
from ved_core.errors import SampleError
from ved_core.processing import Processor
from ved_flax.train.data import DataConfig
from ved_flax.train.data.batches import Batches, evaluation_batches, training_batches
from ved_flax.train.data.samples import Sample, digest
from ved_flax.train.data.sources import open_source

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@functools.cache
def reader_processor() -> Processor:
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


@contextlib.contextmanager
def batches_of_pictures() -> Iterator[Callable[..., Batches]]:
    """A function that makes batches of so many pictures, which are closed in the end."""
    opened: list[Batches] = []

    def make(size: int = 10, *, bad: tuple[int, ...] = (), evaluation: bool = False, **options: Any) -> Batches:
        fields = {field.name for field in dataclasses.fields(DataConfig)}
        config = DataConfig(**{"max_length": 6} | {name: options.pop(name) for name in fields & options.keys()})
        function = evaluation_batches if evaluation else training_batches
        opened.append(function(config, reader_processor(), source=Numbers(size, bad), **{"batch_size": 4} | options))
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
