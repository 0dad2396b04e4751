"""`ImageToText`: images in, texts with confidences out; each framework adds its model class."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ved_core.errors import ImageError
from ved_core.generation.plan import Request
from ved_core.hub import resolve
from ved_core.images import ImageSource, load_image
from ved_core.processing import Processor
from ved_core.streaming import TextStream


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
            loaded = [_load(image) for image in batch]
            readable = [x for x in loaded if not isinstance(x, ImageError)]
            readings = iter(self._read(readable, batch_size, options) if readable else [])
            for x in loaded:
                yield x if isinstance(x, ImageError) else next(readings)

    def stream_text(self, image: ImageSource, **options: Any) -> Iterator[str]:
        """Read one image piece by piece: the pieces together are its text. Takes the options of a call but beams.
        Raises ImageError, GenerationError."""
        pixels = self.processor.pixel_values([image])
        yield from self._pieces(self.model.stream(pixels, **self._options(options, 1)))

    def request(self, **options: Any) -> Request:
        """The options of a call as the request for one image. Raises GenerationError, ConfigError, ProcessorError."""
        return self.model.generation_request(1, **self._options(options, 1), return_dict_in_generate=True)

    def read_request(self, pixels: np.ndarray, request: Request, **seeded: Any) -> list[Reading]:
        """Read images that are processed already, (B, C, H, W), by a request for so many."""
        output = self.model.generate(pixels, request=request, **seeded)
        return self._readings(output, len(pixels))

    def stream_request(self, pixels: np.ndarray, request: Request, **seeded: Any) -> Iterator[str]:
        """Read one image that is processed already, (1, C, H, W), piece by piece."""
        return self._pieces(self.model.stream(pixels, request=request, **seeded))

    def _pieces(self, chunks: Iterator[np.ndarray]) -> Iterator[str]:
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

    def _read(self, images: list[Any], batch_size: int, options: dict[str, Any]) -> list[Reading]:
        pixels = self.processor.pixel_values(images)
        options = self._options(options, len(images)) | {"batch_buckets": [batch_size]}
        output = self.model.generate(pixels, **options, return_dict_in_generate=True)
        return self._readings(output, len(images))

    def _readings(self, output: Any, images: int) -> list[Reading]:
        texts = self.processor.decode(self.to_numpy(output.sequences))
        readings = list(map(Reading, texts, self.to_numpy(output.confidences).tolist()))
        several = len(readings) // images
        groups = (readings[first : first + several] for first in range(0, len(readings), several))
        return [dataclasses.replace(best, alternatives=tuple(others)) for best, *others in groups]


def _load(image: ImageSource) -> Any:
    try:
        return load_image(image)
    except ImageError as error:
        return error
