"""One local batch: samples decoded with the checkpoint's own processor, bad and missing ones masked."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ved_core.errors import DataError, ImageError, ProcessorError, SampleError
from ved_core.images import load_image
from ved_core.inputs import IGNORED
from ved_core.processing import Processor
from ved_flax.train.data.augment import augmented
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.labels import Labels
from ved_flax.train.data.samples import Source


class Batch(TypedDict):
    """`pixel_values` (B, C, H, W) float32; `labels` (B, T) int32, -100 where ignored; `weight` (B,) float32, 1 for a
    sample and 0 for a row that only fills the batch up or stands for a bad sample, its labels all ignored; of each row
    its sample's id, and all texts that are right for it."""

    pixel_values: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    ids: list[str]
    references: list[list[str]]


class Place(NamedTuple):
    """What a row shows: a sample, and how often all samples were seen before."""

    epoch: int
    sample: int


@dataclasses.dataclass
class Notes:
    """What decoding a batch has to tell: one object, so that workers hand it over whole."""

    ids: list[str]
    references: list[list[str]]
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    """(epoch, what is wrong with which sample)."""
    cut: list[str] = dataclasses.field(default_factory=list)
    """Ids of samples whose text was longer than the labels."""


class Decoder:
    """Places to a local batch: a pure function of them, whichever process or thread runs it."""

    def __init__(
        self, source: Source, config: DataConfig, processor: Processor, labels: Labels, training: bool
    ) -> None:
        self.source, self.config, self.processor, self.labels = source, config, processor, labels
        self.training = training
        self.shape = processor.pixel_values([np.full((64, 64, 3), 255, np.uint8)]).shape[1:]
        """(C, H, W) of every image."""

    def __call__(self, places: Sequence[Place | None]) -> dict[str, Any]:
        """`Batch` with `notes` in place of its lists. Raises DataError for what concerns all samples."""
        size = len(places)
        pixels = np.zeros((size, *self.shape), np.float32)
        labels = np.full((size, self.labels.length), IGNORED, np.int32)
        weight = np.zeros(size, np.float32)
        notes = Notes([""] * size, [[] for _ in range(size)])
        for row, place in enumerate(places):
            if place is None:
                continue
            notes.ids[row] = self.source.name(place.sample)
            try:
                name, texts, pixels[row], labels[row], cut = self._row(place)
            except SampleError as error:
                notes.bad.append((place.epoch, str(error)))
                continue
            weight[row] = 1
            notes.ids[row], notes.references[row] = name, list(texts)
            notes.cut += [name] * cut
        return {"pixel_values": pixels, "labels": labels, "weight": weight, "notes": notes}

    def _row(self, place: Place) -> tuple[str, tuple[str, ...], np.ndarray, np.ndarray, bool]:
        sample = self.source[place.sample]
        rng = np.random.default_rng((self.config.seed, place.epoch, place.sample))
        chance = rng.random()
        text = sample.texts[rng.integers(len(sample.texts))] if self.training else sample.texts[0]
        try:
            image = load_image(sample.image)
            if self.training and chance < self.config.augment:
                image = augmented(image, rng, self.config)
            pixels = self.processor.pixel_values([image])[0]
        except (ImageError, ProcessorError) as error:
            raise SampleError(f"{sample.id}: {error}") from error
        if pixels.shape != self.shape:
            raise DataError(
                f"{sample.id}: its image is processed to {pixels.shape}, others to {self.shape}; one program is "
                "compiled for one size: give a fixed height and width as 'size' in preprocessor_config.json"
            )
        return sample.id, sample.texts, pixels, *self.labels(text)
