"""What a run tells about itself."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    """Is told of every step that is logged, and of every evaluation; on process 0 only."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """`metrics`: those of `step.Metrics`; images, tokens and seconds since the last call; skipped batches."""
        ...

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """What the evaluation function returned."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


class JsonLines:
    """One JSON object for every call, in a file that a run goes on with: what was written behind the step that it is
    taken up from is cut off, so that every step is there once."""

    def __init__(self, file: Path, resumed: int = 0) -> None:
        """`resumed`: the step behind which the run goes on."""
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(file) if line.get("step", resumed + 1) <= resumed]
        part = file.with_name(f".{file.name}.part")
        part.write_text("".join(map(_written, kept)), encoding="utf-8")
        os.replace(part, file)
        self._evaluated = {line["step"] for line in kept if "evaluation" in line}
        self._open = file.open("a", encoding="utf-8")

    def write(self, **entry: Any) -> None:
        """Add an object, whole even where the process is ended."""
        self._open.write(_written(entry))
        self._open.flush()

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step=step, **metrics)

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        if step not in self._evaluated:  # a run that was interrupted behind an evaluation may do it again
            self._evaluated.add(step)
            self.write(step=step, evaluation=dict(results))

    def close(self) -> None:
        self._open.close()


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file; a line that was cut off in the middle is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _written(entry: Mapping[str, Any]) -> str:
    return json.dumps(_finite(entry), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become texts."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
