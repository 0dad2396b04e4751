"""At each evaluation: the curves so far, and a sheet of samples."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ved_flax.train.reporters.history import History

if TYPE_CHECKING:
    from PIL.Image import Image


class Pictures:
    """`curves.png`, drawn again, and `samples-STEP.png`, in `folder`. What a job recorded before it was started again
    comes from its log, as `History.read` takes it."""

    def __init__(self, folder: str | Path, log: str | Path, step: int = 0) -> None:
        self.folder = Path(folder)
        self.history = History.read(log, step)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep loss and learning rate."""
        self.history.add(step, metrics)

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Draw both; the sheet only where the results have pictures."""
        from ved_flax.train.reporters.curves import curves
        from ved_flax.train.reporters.sheet import sheet

        self.history.evaluated(step, results)
        self.folder.mkdir(parents=True, exist_ok=True)
        _save(curves(self.history), self.folder / "curves.png")
        if getattr(results, "pictures", None):
            _save(sheet(step, results), self.folder / f"samples-{step:08d}.png")

    def close(self) -> None:
        """Nothing."""


def _save(image: "Image", path: Path) -> None:
    """Whole or not at all: somebody may be looking."""
    unfinished = path.with_name(f".{path.name}.tmp")
    image.save(unfinished, "PNG")
    os.replace(unfinished, path)
