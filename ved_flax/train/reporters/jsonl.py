"""Every step's metrics as a line of JSON."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ved_flax.train.evaluation import Evaluation

TRAIN, EVALUATION = "train", "evaluation"


class MetricsLog:
    """Lines such as {"step": 5, "kind": "train", "loss": 1.2}, appended; kind evaluation for those of evaluations.

    A line is on its way to disk when a call returns, so that a killed process loses none. Of a job that goes on, lines
    beyond the step that it was restored to are cut, and a last line that was torn: no step is there twice.
    """

    def __init__(self, path: str | Path, step: int = 0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._evaluated: set[int] = set()
        if self.path.exists():
            self._cut(step)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def _cut(self, step: int) -> None:
        kept = 0
        with self.path.open("rb+") as file:
            for line in file:
                record = _record(line)
                if record is None or record["step"] > step:
                    break
                if record["kind"] == EVALUATION:
                    self._evaluated.add(record["step"])
                kept += len(line)
            file.truncate(kept)
            os.fsync(file.fileno())

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Append a step."""
        self._append(step, TRAIN, metrics)

    def on_evaluation(self, step: int, evaluation: "Evaluation") -> None:
        """Append an evaluation, unless a job that went on has repeated it."""
        if step not in self._evaluated:
            self._evaluated.add(step)
            counts = {"samples": len(evaluation.predictions), "bad_samples": evaluation.bad}
            self._append(step, EVALUATION, evaluation.metrics | counts)

    def _append(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a log, up to the first torn line."""
    with Path(path).open("rb") as file:
        for line in file:
            record = _record(line)
            if record is None:
                return
            yield record


def _record(line: bytes) -> dict[str, Any] | None:
    """A whole line's record."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    fine = isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
    return record if fine else None
