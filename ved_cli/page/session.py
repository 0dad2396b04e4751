"""`Session`: what the page does with a model, in either framework; nothing of how it looks."""

import dataclasses
import importlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ved_core.errors import VedError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ved_core.pipeline import ImageToText

STRATEGIES = ("greedy", "beam search", "sampling")
OPAQUE = 0.75
"""How much attention covers of the image, at most."""
MOST_MODELS = 2
"""Models that are kept in memory, for each framework."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is chosen on the page."""

    model: str
    strategy: str = "greedy"
    num_beams: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None
    prompt: str = ""

    def options(self) -> dict[str, Any]:
        """As those of a pipeline's call."""
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "prompt": self.prompt or None}
        options = {name: value for name, value in options.items() if value}
        if self.strategy == "beam search":
            return options | {"do_sample": False, "num_beams": self.num_beams, "num_return_sequences": self.num_beams}
        options |= {"num_beams": 1, "do_sample": self.strategy == "sampling"}
        if options["do_sample"]:
            options |= {"temperature": self.temperature, "top_p": self.top_p}
        return options

    def seeded(self, pipeline: "ImageToText") -> dict[str, Any]:
        """What sampling draws from."""
        return pipeline.seeded(self.seed) if self.strategy == "sampling" else {}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one framework made of an image. `texts`: each with its confidence and, in beam search, its score;
    `first`: seconds of the first call with these shapes, compilation included; `again`: of the one after it."""

    texts: list[tuple[str, float, float | None]]
    first: float
    again: float
    tokens: int
    attention: tuple[np.ndarray, list[tuple[np.ndarray, str]]]
    """The image as the model saw it, and for each word where it looked, from 0 to 1, (H, W)."""


class Session:
    """The models that were loaded so far."""

    def __init__(self) -> None:
        self._pipelines: dict[tuple[str, str], ImageToText] = {}

    def pipeline(self, framework: str, model: str) -> "ImageToText":
        """A model in a framework, loaded at its first use. Raises VedError."""
        if not model.strip():
            raise VedError("no model is chosen: give a checkpoint folder or a name on the Hugging Face hub")
        key = framework, model
        if key not in self._pipelines:
            kept = [other for other in self._pipelines if other[0] == framework]
            if len(kept) >= MOST_MODELS:
                del self._pipelines[kept[0]]
            self._pipelines[key] = importlib.import_module(f"ved_{framework}").ImageToText.from_pretrained(model)
        return self._pipelines[key]

    def pieces(self, framework: str, image: "Image", choice: Choice) -> Iterator[str]:
        """The text as it comes, as much as is known so far; nothing in beam search, which decides at the end."""
        pipeline = self.pipeline(framework, choice.model)
        if choice.strategy == "beam search":
            return
        text = ""
        for piece in pipeline.stream_text(image, **choice.options(), **choice.seeded(pipeline)):
            text += piece
            yield text

    def outcome(self, framework: str, image: "Image", choice: Choice) -> Outcome:
        """Read it twice, for the time that it takes with and without compilation, and look where the decoder looked.
        Raises VedError."""
        pipeline = self.pipeline(framework, choice.model)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            output = self._generate(pipeline, image, choice)
            seconds.append(time.perf_counter() - start)
        lengths = (pipeline.to_numpy(output.token_log_probs) != 0).sum(axis=1)
        return Outcome(
            self._texts(pipeline, output),
            seconds[0],
            seconds[1],
            int(lengths[0]),
            self._attention(pipeline, image, choice),
        )

    @staticmethod
    def _generate(pipeline: "ImageToText", image: "Image", choice: Choice) -> Any:
        pixels, request = pipeline.processor.pixel_values([image]), pipeline.request(**choice.options())
        return pipeline.model.generate(pixels, request=request, **choice.seeded(pipeline))

    @staticmethod
    def _texts(pipeline: "ImageToText", output: Any) -> list[tuple[str, float, float | None]]:
        texts = pipeline.processor.decode(pipeline.to_numpy(output.sequences))
        confidences = pipeline.to_numpy(output.confidences).tolist()
        scores: Sequence[float | None] = [None] * len(texts)
        if output.sequences_scores is not None:
            scores = pipeline.to_numpy(output.sequences_scores).tolist()
        return list(zip(texts, confidences, scores, strict=True))

    @staticmethod
    def _attention(
        pipeline: "ImageToText", image: "Image", choice: Choice
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, str]]]:
        look = pipeline.look(image, **choice.options(), **choice.seeded(pipeline))
        assert not isinstance(look, list)  # of one image
        # A label is a colour: a word that comes twice is told apart by its place.
        words = [f"{place + 1} {word.text} {word.confidence:.2f}" for place, word in enumerate(look.words)]
        return look.image, [(OPAQUE * look.heat(place), word) for place, word in enumerate(words)]
