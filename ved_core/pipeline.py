"""`ImageToText`: images in, texts with confidences out; each framework adds its model class."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from ved_core.attention_maps import Look, TokenGrid, check_unit, look_at
from ved_core.errors import ImageError, InputError, ProcessorError
from ved_core.generation.plan import Request
from ved_core.hub import resolve
from ved_core.images import ImageSource, load_image
from ved_core.processing import Processor
from ved_core.publishing import push_model
from ved_core.streaming import TextStream

PLAIN = np.full((64, 64, 3), 128, np.uint8)
"""An image that every image processor can do."""
Result = TypeVar("Result")


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

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write model, image processor and tokenizer; `options`: those of the model's own save_pretrained. Raises
        OSError, CheckpointError, ProcessorError."""
        self.model.save_pretrained(folder, **options)
        self.processor.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Model, image processor, tokenizer and, where there is none, a model card to "owner/name" on the Hugging Face
        hub, in one commit whose address is returned. `options`: those of the model's own push_to_hub; the card has what
        `ved eval --save` measured unless `results` are given. Raises HubError, CheckpointError, ProcessorError."""
        return push_model(self.model, repo_id, processor=self.processor, **options)

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
        results = self.stream(several, batch_size=_fitting(batch_size, several), **options)
        readings = list(map(_raised, results))
        return readings if isinstance(images, list) else readings[0]

    def look(
        self, images: ImageSource | list[ImageSource], *, batch_size: int = 8, by: str = "word", **options: Any
    ) -> Look | list[Look]:
        """Read, and see where the decoder looked for each word, or with by="token" for each token: cross-attention over
        the image, the mean over decoder `layers` and `heads`, all by default. Takes the options of a call too; of
        several texts of an image the first is shown. `ved_core.drawing.draw` makes a picture of what comes back.

        Costs one more pass through the decoder. Raises ImageError naming the image, GenerationError."""
        several = images if isinstance(images, list) else [images]
        results = self.stream_looks(several, batch_size=_fitting(batch_size, several), by=by, **options)
        looks = list(map(_raised, results))
        return looks if isinstance(images, list) else looks[0]

    def stream(
        self, images: Iterable[ImageSource], *, batch_size: int = 8, **options: Any
    ) -> Iterator[Reading | ImageError]:
        """Read images as they come, one result for each in order; a bad image gives its ImageError, and the rest is
        read all the same. The last batch is filled up to `batch_size`: another size would be compiled anew."""
        return self._stream(images, batch_size, lambda pixels: self._read(pixels, batch_size, options))

    def stream_looks(
        self, images: Iterable[ImageSource], *, batch_size: int = 8, by: str = "word", **options: Any
    ) -> Iterator[Look | ImageError]:
        """`look`, for images as they come, as `stream` reads them."""
        check_unit(by)
        return self._stream(images, batch_size, lambda pixels: self._look(pixels, batch_size, by, options))

    def _stream(
        self, images: Iterable[ImageSource], batch_size: int, read: Callable[[np.ndarray], list[Result]]
    ) -> Iterator[Result | ImageError]:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} should be at least 1")
        return self._batches(iter(images), batch_size, read)

    def _batches(
        self, images: Iterator[ImageSource], batch_size: int, read: Callable[[np.ndarray], list[Result]]
    ) -> Iterator[Result | ImageError]:
        while batch := list(itertools.islice(images, batch_size)):
            yield from self._results(batch, read)

    def _results(
        self, images: list[ImageSource], read: Callable[[np.ndarray], list[Result]]
    ) -> list[Result | ImageError]:
        """One result for each image."""
        results = self._prepared(images)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for place, pixels in enumerate(results):
            if not isinstance(pixels, ImageError):
                sizes.setdefault(pixels.shape, []).append(place)
        for places in sizes.values():
            try:
                found: list[Any] = read(np.stack([results[place] for place in places]))
            except InputError as error:  # as of a size that the model's positions do not cover
                found = [ImageError(f"{_name(images[place])}: {error}") for place in places]
            for place, result in zip(places, found, strict=True):
                results[place] = result
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
        yield from self._pieces(self.model.stream(pixels[None], **self._options(options, 1)))

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

    def _read(self, pixels: np.ndarray, batch_size: int, options: dict[str, Any]) -> list[Reading]:
        """Read images (B, C, H, W)."""
        options = self._options(options, len(pixels)) | {"batch_buckets": [batch_size]}
        output = self.model.generate(pixels, **options, return_dict_in_generate=True)
        return self._readings(output, len(pixels))

    def _readings(self, output: Any, images: int) -> list[Reading]:
        texts = self.processor.decode(self.to_numpy(output.sequences))
        readings = list(map(Reading, texts, self.to_numpy(output.confidences).tolist()))
        several = len(readings) // images
        groups = (readings[first : first + several] for first in range(0, len(readings), several))
        return [dataclasses.replace(best, alternatives=tuple(others)) for best, *others in groups]

    def _look(self, pixels: np.ndarray, batch_size: int, by: str, options: dict[str, Any]) -> list[Look]:
        """`look` at images (B, C, H, W)."""
        options = self._options(options, len(pixels)) | {"batch_buckets": [batch_size]}
        output, attention = self.model.generate_and_look(pixels, **options)
        several = len(output.sequences) // len(pixels)
        grid = TokenGrid.of(self.model.config.encoder, *pixels.shape[2:])
        return [
            look_at(self.processor.picture(own), reading, ids.tolist(), log_probs_N, attention_NP, grid, self._text, by)
            for own, reading, ids, log_probs_N, attention_NP in zip(
                pixels,
                self._readings(output, len(pixels)),
                *(self.to_numpy(x)[::several] for x in (output.sequences, output.token_log_probs, attention)),
                strict=True,
            )
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return self.processor.decode([ids])[0]


def _fitting(batch_size: int, images: list[Any]) -> int:
    """No more than there are."""
    return max(1, min(batch_size, len(images)))


def _raised(result: Result | ImageError) -> Result:
    if isinstance(result, ImageError):
        raise result
    return result


def _load(image: ImageSource) -> Any:
    try:
        return load_image(image)
    except ImageError as error:
        return error


def _name(image: ImageSource) -> str:
    return f"image {os.fspath(image)!r}" if isinstance(image, str | os.PathLike) else "image"
