"""A profiler trace of some steps, for TensorBoard's profile plugin or Perfetto."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ved_core.errors import ConfigError


class ProfilerTrace:
    """Trace steps `first` to `last`, both included; those of them that are left, where a job goes on in between."""

    def __init__(self, folder: str | Path, first: int, last: int, step: int = 0, every: int = 1) -> None:
        """`step`: the last one that is done; `every`: steps from one call to the next, which are traced together.
        Raises ConfigError for no range."""
        if not 1 <= first <= last:
            raise ConfigError(f"a profile from step {first} to {last}: give first and last step, counted from 1")
        self.folder, self.first, self.last, self.every = str(folder), first, last, every
        self.running = False
        self._between(step)

    def _between(self, step: int) -> None:
        """Start or stop behind a step."""
        import jax

        wanted = step + 1 <= self.last and step + self.every >= self.first
        if wanted and not self.running:
            jax.profiler.start_trace(self.folder)
        if self.running and not wanted:
            jax.profiler.stop_trace()
        self.running = wanted

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Start before the first step, stop behind the last."""
        self._between(step)

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Nothing: an evaluation between two traced steps is traced with them."""

    def close(self) -> None:
        """Write the trace of a job that ends before `last`."""
        self._between(self.last)
