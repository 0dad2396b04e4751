"""`ImageToText`: images in, texts with confidences out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ved_core.errors import ImageError
from ved_core.hub import resolve
from ved_core.images import ImageSource, load_image
from ved_core.processing import Processor
from ved_flax.model import FlaxVisionEncoderDecoderModel
from ved_flax.outputs import GenerateOutput


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text, and the geometric mean of its tokens' probabilities (0 to 1)."""

    text: str
    confidence: float


class ImageToText:
    """A model with its processor: `ImageToText.from_pretrained(name_or_path)("page.png").text`."""

    def __init__(self, model: FlaxVisionEncoderDecoderModel, processor: Processor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> ImageToText:
        """Load model, image processor and tokenizer of one checkpoint. Raises HubError, ConfigError, CheckpointError,
        ProcessorError."""
        folder = resolve(name_or_path, revision=revision, subfolder=subfolder)
        processor = Processor.from_pretrained(folder)
        model = FlaxVisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype, param_dtype=param_dtype)
        return cls(model, processor)

    def __call__(
        self, images: ImageSource | list[ImageSource], *, batch_size: int = 8, **options: Any
    ) -> Reading | list[Reading]:
        """Read one image (a path, a PIL image, an array) or a list of them; `options` are those of `generate`.

        Returns a Reading, or a list of them in the images' order. Raises ImageError naming the image.
        """
        if not isinstance(images, list):
            return self([images], batch_size=1, **options)[0]  # type: ignore[index]
        readings = []
        for result in self.stream(images, batch_size=min(batch_size, max(len(images), 1)), **options):
            if isinstance(result, ImageError):
                raise result
            readings.append(result)
        return readings

    def stream(
        self, images: Iterable[ImageSource], *, batch_size: int = 8, **options: Any
    ) -> Iterator[Reading | ImageError]:
        """Read images as they come, one result for each in order; a bad image gives its ImageError, and the rest is
        read all the same."""
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} should be at least 1")
        images = iter(images)
        while batch := list(itertools.islice(images, batch_size)):
            yield from self._read(batch, batch_size, options)

    def _read(
        self, images: list[ImageSource], batch_size: int, options: dict[str, Any]
    ) -> Iterator[Reading | ImageError]:
        loaded: list[Any] = []
        for image in images:
            try:
                loaded.append(load_image(image))
            except ImageError as error:
                loaded.append(error)
        readings = iter(self._decode([x for x in loaded if not isinstance(x, ImageError)], batch_size, options))
        for x in loaded:
            yield x if isinstance(x, ImageError) else next(readings)

    def _decode(self, images: list[Any], batch_size: int, options: dict[str, Any]) -> list[Reading]:
        if not images:
            return []
        pixels = self.processor.pixel_values(images)
        # A short last batch is filled up: another batch size would be compiled anew.
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch_size - len(pixels), axis=0)])
        output = self.model.generate(pixels, **options, return_dict_in_generate=True)
        assert isinstance(output, GenerateOutput)
        texts = self.processor.decode(np.asarray(output.sequences[: len(images)]))
        return [Reading(text, float(c)) for text, c in zip(texts, np.asarray(output.confidences), strict=False)]
