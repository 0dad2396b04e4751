"""Scalars and the sheet of samples for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class TensorBoard:
    """An event file in `folder`; of a job that goes on, or begins again, TensorBoard drops what is beyond the restored
    step."""

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0, flush_secs=30)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a step's metrics as train/NAME."""
        for name, value in metrics.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Add an evaluation's metrics as evaluation/NAME, and its pictures."""
        for name, value in results.items():
            self.writer.add_scalar(f"evaluation/{name}", value, step)
        if getattr(results, "pictures", None):
            from ved_flax.train.reporters.sheet import sheet

            image = np.asarray(sheet(step, results))
            self.writer.add_image("evaluation/pictures", image, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Write what is waiting."""
        self.writer.close()
