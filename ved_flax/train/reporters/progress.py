"""The progress bar; a line now and then where there is no terminal."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

_EVERY = 15.0
"""Seconds between two lines."""


class Progress:
    """Steps done, time left, loss, learning rate, images and tokens per second, MFU; evaluations stay on the screen."""

    def __init__(
        self,
        total: int,
        step: int = 0,
        *,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from tqdm import tqdm

        self.file = sys.stderr if file is None else file
        self.total, self.first, self.clock = total, step, clock
        self.began = self.written = clock()
        terminal = self.file.isatty()
        self.bar = (
            tqdm(total=total, initial=step, unit="step", file=self.file, dynamic_ncols=True) if terminal else None
        )

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a step's metrics."""
        line = summary(metrics)
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = self.clock()
        if now - self.written >= _EVERY or step == self.total or step == self.first + 1:
            self.written = now
            self._write(f"step {step}/{self.total}  {self._left(step, now)}  {line}")

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Show an evaluation's metrics."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in results.items())
        self._write(f"step {step}: {values}")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def _left(self, step: int, now: float) -> str:
        from tqdm import tqdm

        done = step - self.first
        seconds = (now - self.began) / done * (self.total - step) if done else 0
        return f"{tqdm.format_interval(seconds)} left"

    def _write(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=self.file)
        else:
            print(line, file=self.file, flush=True)


def summary(metrics: Mapping[str, float]) -> str:
    """The metrics that are known by name, in a few characters each; "-" for an unknown MFU."""
    shown: list[tuple[str, Callable[[Any], str], str]] = [
        ("loss", "{:.4f}".format, "loss"),
        ("learning_rate", "{:.2e}".format, "lr"),
        ("images_per_second", _short, "img/s"),
        ("tokens_per_second", _short, "tok/s"),
    ]
    parts = [f"{label} {form(metrics[name])}" for name, form, label in shown if name in metrics]
    if "images_per_second" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}" if "mfu" in metrics else "MFU -")
    return "  ".join(parts)


def _short(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
