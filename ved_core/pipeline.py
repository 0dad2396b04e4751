"""`ImageToText`: images in, texts with confidences out; each framework adds its model class."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ved_core.errors import ImageError
from ved_core.hub import resolve
from ved_core.images import ImageSource, load_image
from ved_core.processing import Processor


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text, and the geometric mean of its tokens' probabilities (0 to 1)."""

    text: str
    confidence: float


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
        **model_options: Any,
    ) -> Self:
        """Load model, image processor and tokenizer of one checkpoint; `model_options`: dtype and other arguments of
        the model's own from_pretrained. Raises HubError, ConfigError, CheckpointError, ProcessorError."""
        folder = resolve(name_or_path, revision=revision, subfolder=subfolder)
        processor = Processor.from_pretrained(folder)
        return cls(cls.model_class.from_pretrained(folder, **model_options), processor)

    @staticmethod
    def to_numpy(array: Any) -> np.ndarray:
        """A framework's array as NumPy's."""
        return np.asarray(array)

    def __call__(
        self, images: ImageSource | list[ImageSource], *, batch_size: int = 8, **options: Any
    ) -> Reading | list[Reading]:
        """Read one image (a path, a PIL image, an array) or a list of them; `options` are those of `generate`.

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
        read all the same. Every batch is filled up to `batch_size`: another size would be compiled anew."""
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} should be at least 1")
        images = iter(images)
        while batch := list(itertools.islice(images, batch_size)):
            loaded = [_load(image) for image in batch]
            readable = [x for x in loaded if not isinstance(x, ImageError)]
            readings = iter(self._read(readable, batch_size, options) if readable else [])
            for x in loaded:
                yield x if isinstance(x, ImageError) else next(readings)

    def _read(self, images: list[Any], batch_size: int, options: dict[str, Any]) -> list[Reading]:
        pixels = self.processor.pixel_values(images)
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch_size - len(pixels), axis=0)])
        output = self.model.generate(pixels, **options, return_dict_in_generate=True)
        texts = self.processor.decode(self.to_numpy(output.sequences[: len(images)]))
        return [Reading(text, float(c)) for text, c in zip(texts, self.to_numpy(output.confidences), strict=False)]


def _load(image: ImageSource) -> Any:
    try:
        return load_image(image)
    except ImageError as error:
        return error
