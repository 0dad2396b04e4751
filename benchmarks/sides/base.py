"""`Base`: what a worker of any framework can be asked for."""

import abc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from benchmarks import models
from benchmarks.memory import Peak, anonymous, give_back


class Timed(TypedDict):
    """A call's wall time, and the ids (B, L) that came of it."""

    seconds: float
    ids: list[list[int]]


class Base(abc.ABC):
    """A model of one framework, loaded when it is first needed. Images are random, the same in every framework."""

    def __init__(self, model: str, folder: Path, variant: str = "") -> None:
        self.name, self.variant = model, variant
        self.place = folder / model
        self.model: Any = None
        self.before = anonymous()

    @abc.abstractmethod
    def load(self) -> Any:
        """The model of the checkpoint at `place`, ready to compute, all of it in memory."""

    @abc.abstractmethod
    def run(self, pixels: np.ndarray, beams: int, new: int) -> np.ndarray:
        """generate(): exactly `new` tokens behind the start token, ids (B, 1 + new)."""

    @abc.abstractmethod
    def encoded(self, pixels: np.ndarray) -> Any:
        """The encoder alone, finished when this returns."""

    def ready(self) -> None:
        """Load, unless that is done."""
        if self.model is None:
            self.model = self.load()

    def generate(self, batch: int, beams: int = 1, new: int = models.NEW_TOKENS) -> Timed:
        """One whole call."""
        self.ready()
        pixels = self.pixels(batch)
        start = time.perf_counter()
        ids = self.run(pixels, beams, new)
        seconds = time.perf_counter() - start
        assert ids.shape == (batch, 1 + new), f"ids of the shape {ids.shape} came back"
        return {"seconds": seconds, "ids": ids.tolist()}

    def encode(self, batch: int) -> Timed:
        """The encoder alone."""
        self.ready()
        pixels = self.pixels(batch)
        return {"seconds": seconds_of(lambda: self.encoded(pixels)), "ids": []}

    def loading(self) -> dict[str, float]:
        """Load: wall time, and the peak of memory above what was there before."""
        with Peak() as peak:
            seconds = seconds_of(self.ready)
        return {"seconds": seconds, "peak": peak.bytes}

    def memory(self, batch: int, beams: int, new: int) -> float:
        """The peak of memory while one call runs, in bytes, without libraries' own and without what compiling freed."""
        self.generate(batch, beams, new)
        give_back()
        with Peak(self.before) as peak:
            self.generate(batch, beams, new)
        return peak.bytes

    def pixels(self, batch: int) -> np.ndarray:
        height, width = models.size(self.name)
        return np.random.default_rng(0).standard_normal((batch, 3, height, width), np.float32)


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
