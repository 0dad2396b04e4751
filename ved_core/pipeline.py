"""`ImageToText`: images in, texts with confidences out; each framework adds its model class."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ved_core.errors import ImageError, InputError, ProcessorError
from ved_core.hub import resolve
from ved_core.images import ImageSource, load_image
from ved_core.processing import Processor
from ved_core.streaming import TextStream

PLAIN = np.full((64, 64, 3), 128, np.uint8)
"""An image that every image processor can do."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text, and the geometric mean of its tokens' probabilities (0 to 1); with num_return_sequences, the other texts
    too."""

    text: str
    confidence: float
    alternatives: tuple[Reading, ...] = ()


class ImageToText:
    """A model with its processor: `ImageToText.from_pretrained(name_or_path)("page.png").text`."""

    model_class: ClassVar[Any]

    def __init__(self, model: Any, processor: Processor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        check_digests: bool | None = None,
        **model_options: Any,
    ) -> Self:
        """Load model, image processor and tokenizer of one checkpoint; `check_digests` and `model_options`: dtype and
        other arguments of the model's own from_pretrained. Raises HubError, ConfigError, CheckpointError,
        ProcessorError."""
        folder = resolve(name_or_path, revision=revision, subfolder=subfolder)
        processor = Processor.from_pretrained(folder, check_digests=check_digests)
        return cls(cls.model_class.from_pretrained(folder, check_digests=check_digests, **model_options), processor)

    @staticmethod
    def to_numpy(array: Any) -> np.ndarray:
        """A framework's array as NumPy's."""
        return np.asarray(array)

    @staticmethod
    @abc.abstractmethod
    def seeded(seed: int) -> dict[str, Any]:
        """The option of `generate` that makes sampling reproducible."""

    def __call__(
        self, images: ImageSource | list[ImageSource], *, batch_size: int = 8, **options: Any
    ) -> Reading | list[Reading]:
        """Read one image (a path, a PIL image, an array) or a list of them; `options` are those of `generate`, and
        `prompt`: a text that each output begins with (Donut's task token).

        Returns a Reading, or a list of them in the images' order. Raises ImageError naming the image.
        """
        several = images if isinstance(images, list) else [images]
        readings = []
        for result in self.stream(several, batch_size=max(1, min(batch_size, len(several))), **options):
            if isinstance(result, ImageError):
                raise result
            readings.append(result)
        return readings if isinstance(images, list) else readings[0]

    def stream(
        self, images: Iterable[ImageSource], *, batch_size: int = 8, **options: Any
    ) -> Iterator[Reading | ImageError]:
        """Read images as they come, one result for each in order; a bad image gives its ImageError, and the rest is
        read all the same. The last batch is filled up to `batch_size`: another size would be compiled anew."""
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} should be at least 1")
        images = iter(images)
        while batch := list(itertools.islice(images, batch_size)):
            yield from self._results(batch, batch_size, options)

    def _results(
        self, images: list[ImageSource], batch_size: int, options: dict[str, Any]
    ) -> list[Reading | ImageError]:
        """One result for each image."""
        results = self._prepared(images)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for place, pixels in enumerate(results):
            if not isinstance(pixels, ImageError):
                sizes.setdefault(pixels.shape, []).append(place)
        for places in sizes.values():
            try:
                readings: list[Any] = self._read(np.stack([results[place] for place in places]), batch_size, options)
            except InputError as error:  # as of a size that the model's positions do not cover
                readings = [ImageError(f"{_name(images[place])}: {error}") for place in places]
            for place, reading in zip(places, readings, strict=True):
                results[place] = reading
        return results

    def _prepared(self, images: list[ImageSource]) -> list[Any]:
        """pixel_values (C, H, W) of each image, or its ImageError: of a file that is none, or of a shape that the image
        processor cannot do. Raises ProcessorError where it can do no image at all."""
        found: list[Any] = [_load(image) for image in images]
        places = [place for place, image in enumerate(found) if not isinstance(image, ImageError)]
        if not places:
            return found
        try:
            pixels: list[Any] = list(self.processor.pixel_values([found[place] for place in places]))
        except ProcessorError:  # of one of them, or because they differ in size
            pixels = [self._prepared_alone(images[place], found[place]) for place in places]
        for place, array in zip(places, pixels, strict=True):
            found[place] = array
        return found

    def _prepared_alone(self, source: ImageSource, image: Any) -> np.ndarray | ImageError:
        try:
            return self.processor.pixel_values([image])[0]
        except ProcessorError as error:
            self.processor.pixel_values([PLAIN])
            return ImageError(f"{_name(source)}: {image.width} x {image.height} pixels: {error}")

    def stream_text(self, image: ImageSource, **options: Any) -> Iterator[str]:
        """Read one image piece by piece: the pieces together are its text. Takes the options of a call but beams.
        Raises ImageError, GenerationError."""
        pixels = self._prepared([image])[0]
        if isinstance(pixels, ImageError):
            raise pixels
        chunks = self.model.stream(pixels[None], **self._options(options, 1))
        text = TextStream(self.processor.decode, skip_prompt=False)
        for chunk in chunks:
            if piece := text.put(chunk):
                yield piece
        if rest := text.end():
            yield rest

    def _options(self, options: dict[str, Any], images: int) -> dict[str, Any]:
        """The options of `generate`."""
        options = {"tokenizer": self.processor.tokenizer, **options}
        prompt = options.pop("prompt", None)
        if prompt is not None:
            options["decoder_input_ids"] = np.repeat(self.processor.encode(prompt), images, axis=0)
        return options

    def _read(self, pixels: np.ndarray, batch_size: int, options: dict[str, Any]) -> list[Reading]:
        """Read images (B, C, H, W)."""
        options = self._options(options, len(pixels)) | {"batch_buckets": [batch_size]}
        output = self.model.generate(pixels, **options, return_dict_in_generate=True)
        texts = self.processor.decode(self.to_numpy(output.sequences))
        readings = list(map(Reading, texts, self.to_numpy(output.confidences).tolist()))
        several = len(readings) // len(pixels)
        groups = (readings[first : first + several] for first in range(0, len(readings), several))
        return [dataclasses.replace(best, alternatives=tuple(others)) for best, *others in groups]


def _load(image: ImageSource) -> Any:
    try:
        return load_image(image)
    except ImageError as error:
        return error


def _name(image: ImageSource) -> str:
    return f"image {os.fspath(image)!r}" if isinstance(image, str | os.PathLike) else "image"
