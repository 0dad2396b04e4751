"""`standard_reporters`: what a job shows, by its options."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ved_core.errors import ConfigError


def _field(default: Any, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclasses.dataclass(kw_only=True)
class ReportConfig:
    """What is shown of a training job. Raises ConfigError for a value that cannot be."""

    progress: bool = _field(True, "A progress bar on a terminal, else a line now and then, on stderr.")
    tensorboard: bool = _field(True, "Event files for TensorBoard, in tensorboard/.")
    pictures: bool = _field(True, "At each evaluation curves.png and a sheet of samples, in pictures/.")
    profile_from: int | None = _field(
        None,
        "First step of a profiler trace, in profile/; all steps up to the next record of metrics are traced with it. "
        "Not set: no trace.",
    )
    profile_to: int | None = _field(None, "Its last step. Not set: profile_from.")

    def __post_init__(self) -> None:
        for name in ("progress", "tensorboard", "pictures"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"report.{name} = {getattr(self, name)!r} should be true or false")
        first, last = self.profile_from, self.profile_to
        for name, value in (("profile_from", first), ("profile_to", last)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"report.{name} = {value!r} should be a step, counted from 1, or null")
        if last is not None and (first is None or last < first):
            raise ConfigError(f"report.profile_to = {last} needs a profile_from that is not above it")


def standard_reporters(
    config: ReportConfig,
    folder: str | Path,
    *,
    total: int,
    step: int = 0,
    every: int = 1,
    flops: float | Callable[[], float | None] | None = None,
    peak: float | None = None,
) -> list[Any]:
    """The reporters of a job with its files in `folder`, its log of metrics as metrics.jsonl there; `total`: its steps,
    `step`: the one that it was restored to, `every`: how many from one report to the next; `flops` and `peak` as
    `Speed` takes them. Make them in one process only."""
    from ved_flax.train.reporters.pictures import Pictures
    from ved_flax.train.reporters.profiler import ProfilerTrace
    from ved_flax.train.reporters.progress import Progress
    from ved_flax.train.reporters.speed import Speed
    from ved_flax.train.reporters.tensorboard import TensorBoard

    folder = Path(folder)
    reporters: list[Any] = []
    if config.progress:
        reporters.append(Progress(total, step))
    if config.tensorboard:
        reporters.append(TensorBoard(folder / "tensorboard", step))
    if config.pictures:
        reporters.append(Pictures(folder / "pictures", folder / "metrics.jsonl", step))
    if config.profile_from is not None:
        last = config.profile_to or config.profile_from
        reporters.append(ProfilerTrace(folder / "profile", config.profile_from, last, step, every))
    return [Speed(reporters, flops, peak)]
