"""`Batcher`: images wait here, and leave as batches as soon as the engine is free."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence

from ved_cli.serving.engine import Engine, Job
from ved_cli.serving.metrics import Metrics
from ved_core.pipeline import Reading

SMOOTHING = 0.2
"""Weight of the newest batch in the average of what a batch takes."""


class FullError(Exception):
    """There is no place. `seconds`: after which there may be one."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many images are waiting: try again in {seconds} s")
        self.seconds = seconds


class Places:
    """Some of the server's places, held by one request until its end."""

    def __init__(self, batcher: "Batcher") -> None:
        self.batcher, self.held = batcher, 0

    def take(self, count: int) -> None:
        """Hold `count` in all. Raises FullError, and holds what it held."""
        more = count - self.held
        if more > 0 and self.batcher.taken + more > self.batcher.settings.max_waiting:
            raise FullError(self.batcher.patience())
        self.batcher.taken += more
        self.held = count

    def __enter__(self) -> "Places":
        return self

    def __exit__(self, *_: object) -> None:
        self.take(0)


class Batcher:
    """Reads jobs in batches of one group, in the order in which they came."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self.metrics, self.settings = engine, metrics, engine.settings
        self.taken = 0
        self._waiting: deque[tuple[Job, asyncio.Future[Reading]]] = deque()
        self._arrived = asyncio.Event()
        self._seconds = 0.0

    def places(self) -> Places:
        """For one request: none yet."""
        return Places(self)

    def patience(self) -> int:
        """Whole seconds in which about as many images are read as places are taken."""
        return max(1, math.ceil(self._seconds * self.taken / self.settings.batch_size))

    @property
    def waiting(self) -> int:
        """Images that no batch has taken yet."""
        return len(self._waiting)

    def put(self, jobs: Sequence[Job]) -> list[asyncio.Future[Reading]]:
        """Let jobs wait for their readings. A future that is cancelled takes its job away."""
        futures = [asyncio.get_running_loop().create_future() for _ in jobs]
        self._waiting.extend(zip(jobs, futures, strict=True))
        self._arrived.set()
        return futures

    async def run(self) -> None:
        """Read for ever."""
        while True:
            if not self._arrived.is_set():
                await self._arrived.wait()
                if self.settings.linger and self.waiting < self.settings.batch_size:
                    await asyncio.sleep(self.settings.linger)
            batch = self._next()
            if batch:
                await self._read(batch)

    def _next(self) -> list[tuple[Job, asyncio.Future[Reading]]]:
        """The oldest job and those after it that can go with it."""
        batch: list[tuple[Job, asyncio.Future[Reading]]] = []
        left: deque[tuple[Job, asyncio.Future[Reading]]] = deque()
        for job, future in self._waiting:
            if future.done():
                continue
            fits = not batch or (len(batch) < self.settings.batch_size and job.group == batch[0][0].group)
            (batch if fits else left).append((job, future))
        self._waiting = left
        if not left:
            self._arrived.clear()
        return batch

    async def _read(self, batch: list[tuple[Job, asyncio.Future[Reading]]]) -> None:
        start = time.perf_counter()
        futures = [future for _, future in batch]
        try:
            readings = await self.engine.run(self.engine.read, [job for job, _ in batch])
        except Exception as error:  # of this batch; the next one may be fine
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, reading in zip(futures, readings, strict=True):
            if not future.done():
                future.set_result(reading)
        seconds = time.perf_counter() - start
        self._seconds += (seconds - self._seconds) * (SMOOTHING if self._seconds else 1.0)
        self.metrics.batch(len(batch), seconds)
