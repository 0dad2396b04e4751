"""Scalars and the sheet of samples for TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ved_flax.train.evaluation import Evaluation


class TensorBoard:
    """An event file in `folder`; of a job that goes on, TensorBoard drops what is beyond the restored step."""

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=30)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Add a step's metrics as train/NAME."""
        for name, value in metrics.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def on_evaluation(self, step: int, evaluation: "Evaluation") -> None:
        """Add an evaluation's metrics as evaluation/NAME, and its samples."""
        for name, value in evaluation.metrics.items():
            self.writer.add_scalar(f"evaluation/{name}", value, step)
        if evaluation.pictures:
            from ved_flax.train.reporters.sheet import sheet

            image = np.asarray(sheet(step, evaluation))
            self.writer.add_image("evaluation/samples", image, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Write what is waiting."""
        self.writer.close()
