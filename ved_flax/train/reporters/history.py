"""What a job has recorded so far, as the curves need it."""

import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_KEPT = ("loss", "learning_rate")


class History:
    """Loss and learning rate of every step that was reported, and all evaluations' metrics; each step once."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = {name: array("d") for name in _KEPT}
        self.evaluations: dict[int, dict[str, float]] = {}

    @classmethod
    def read(cls, log: str | Path, until: int) -> "History":
        """From a log of one JSON object a line, {"step": 5, "loss": 1.2} or {"step": 5, "evaluation": {"cer": 0.1}}, up
        to a step; nothing where there is no log. A line that was torn is passed by."""
        history = cls()
        for record in _records(Path(log)):
            step, results = record.get("step"), record.get("evaluation")
            if not isinstance(step, int) or step > until:
                continue
            if isinstance(results, dict):
                history.evaluated(step, results)
            else:
                history.add(step, record)
        return history

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step's metrics, unless they are there already."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            for name, values in self.values.items():
                values.append(_number(metrics.get(name)))

    def evaluated(self, step: int, results: Mapping[str, Any]) -> None:
        """An evaluation's metrics; the later ones where a step is evaluated again."""
        self.evaluations[step] = {name: _number(value) for name, value in results.items()}

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values; NaN where a value was not finite."""
        return np.array(self.steps, float), np.array(self.values[name], float)

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps of the evaluations that have a metric, and its values."""
        pairs = [(step, values[name]) for step, values in sorted(self.evaluations.items()) if name in values]
        return np.array([step for step, _ in pairs], float), np.array([value for _, value in pairs], float)


def _number(value: Any) -> float:
    """Also of the texts that stand for what JSON cannot hold."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def _records(log: Path) -> Iterator[dict[str, Any]]:
    if not log.exists():
        return
    with log.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
