"""`Engine`: a pipeline on a thread of its own, which alone computes; its programs are compiled before it is ready."""

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ved_cli.serving.settings import Settings
from ved_core.errors import GenerationError, ImageError
from ved_core.generation.joining import joined, like, numbered, signature
from ved_core.generation.plan import Request
from ved_core.images import ImageSource
from ved_core.pipeline import ImageToText, Reading

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Job:
    """One image to read: `pixels` (C, H, W) float32, what is to be done, and the seed that was given for it. `group`:
    equal for jobs that one batch can hold."""

    pixels: np.ndarray
    request: Request
    seed: int | None
    group: tuple[Any, ...]


class Engine:
    """A pipeline with the decoding options that it is compiled for."""

    def __init__(self, pipeline: ImageToText, options: Mapping[str, Any], settings: Settings) -> None:
        """Raises GenerationError, ConfigError, ProcessorError where the options are not for this model."""
        self.pipeline, self.options, self.settings = pipeline, dict(options), settings
        self.served = pipeline.request(**options)
        self.blank = pipeline.processor.pixel_values([Image.new("RGB", (64, 64), "white")])[0]
        self._thread = ThreadPoolExecutor(1, "ved-engine")

    @property
    def streams(self) -> bool:
        """Whether texts can be given as they come: not in beam search, nor where several are asked for."""
        return self.served.plan.streams == 1

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def warm_up(self) -> None:
        """Compile every batch size, and streaming."""
        (job,) = self.jobs([self.blank], {})
        for size in self.settings.buckets:
            await self.run(self.read, [job] * size)
        if self.streams:
            async for _ in self.stream(job):
                pass

    def jobs(self, images: Sequence[np.ndarray], options: Mapping[str, Any]) -> list[Job]:
        """What is to be done for the processed images of one call. Raises GenerationError, ConfigError, ProcessorError
        for options that are wrong or need another program."""
        options = dict(options)
        seed = options.pop("seed", None)
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31):
            raise GenerationError(f"seed = {seed!r} should be a whole number from 0 to {2**31 - 1}")
        if seed is not None and not self.served.plan.do_sample:
            raise GenerationError(f"seed = {seed} is of sampling, which is not what is compiled here: leave it out")
        request = self.served
        if options:
            request = like(self.pipeline.request(**self.options | options), self.served)
        group = seed, signature(request)
        return [Job(pixels, numbered(request, number), seed, group) for number, pixels in enumerate(images)]

    def process(self, image: ImageSource) -> np.ndarray:
        """An image as the encoder takes it, (C, H, W) float32. Raises ImageError, ProcessorError."""
        pixels = self.pipeline.processor.pixel_values([image])[0]
        if pixels.shape != self.blank.shape:
            raise ImageError(f"is processed to {pixels.shape}, and what is compiled here takes {self.blank.shape}")
        return pixels

    def read(self, jobs: Sequence[Job]) -> list[Reading]:
        """Read jobs of one group in one call, on the engine's thread."""
        size = next(size for size in self.settings.buckets if size >= len(jobs))
        pixels = np.stack([job.pixels for job in jobs])
        pixels = pixels[np.minimum(np.arange(size), len(jobs) - 1)]
        request = joined([job.request for job in jobs], size)
        if jobs[0].seed is None:
            # Rows count from the batch's first, so that no two draw the same.
            request = numbered(request, 0)
        return self.pipeline.read_request(pixels, request, **self._seeded(jobs[0]))[: len(jobs)]

    async def stream(self, job: Job) -> AsyncIterator[str]:
        """Read one image piece by piece; between the pieces, batches have their turn."""
        pixels, request = job.pixels[None], job.request
        pieces = await self.run(lambda: self.pipeline.stream_request(pixels, request, **self._seeded(job)))
        while (piece := await self.run(next, pieces, None)) is not None:
            yield piece

    def _seeded(self, job: Job) -> dict[str, Any]:
        if not job.request.plan.do_sample:
            return {}
        return self.pipeline.seeded(secrets.randbits(31) if job.seed is None else job.seed)

    def close(self) -> None:
        """Wait for what is being computed."""
        self._thread.shutdown()
