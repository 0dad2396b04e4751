"""At each evaluation: the curves so far, and a sheet of samples."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ved_flax.train.reporters.jsonl import read_metrics

if TYPE_CHECKING:
    from PIL.Image import Image

    from ved_flax.train.evaluation import Evaluation


class Pictures:
    """`curves.png`, drawn again, and `samples-STEP.png`, in `folder`; the curves are those of a `MetricsLog`, which has
    to be told of an evaluation first."""

    def __init__(self, folder: str | Path, log: str | Path) -> None:
        self.folder, self.log = Path(folder), Path(log)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def on_evaluation(self, step: int, evaluation: "Evaluation") -> None:
        """Draw both."""
        from ved_flax.train.reporters.curves import curves
        from ved_flax.train.reporters.sheet import sheet

        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            _save(curves(list(read_metrics(self.log))), self.folder / "curves.png")
        if evaluation.pictures:
            _save(sheet(step, evaluation), self.folder / f"samples-{step:08d}.png")

    def close(self) -> None:
        """Nothing."""


def _save(image: "Image", path: Path) -> None:
    """Whole or not at all: somebody may be looking."""
    unfinished = path.with_name(f".{path.name}.tmp")
    image.save(unfinished, "PNG")
    os.replace(unfinished, path)
