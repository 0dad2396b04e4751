"""ONNX Runtime by way of optimum-onnx, in an environment of its own (`make bench`): what transformers' model is
exported to, once, beside the checkpoint."""

from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForVision2Seq

from benchmarks.sides.base import Base
from benchmarks.worker import THREADS


class Side(Base):
    """ORTModelForVision2Seq on the CPU."""

    def load(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        place = self.place.with_name(f"{self.name}-onnx")
        if not (place / "config.json").exists():
            ORTModelForVision2Seq.from_pretrained(self.place, export=True).save_pretrained(place)
        return ORTModelForVision2Seq.from_pretrained(place, session_options=options)

    def run(self, pixels: np.ndarray, beams: int, new: int) -> np.ndarray:
        options = {"num_beams": beams, "do_sample": False, "min_new_tokens": new, "max_new_tokens": new}
        return self.model.generate(torch.from_numpy(pixels), **options).numpy()

    def encoded(self, pixels: np.ndarray) -> Any:
        return self.model.encoder(pixel_values=torch.from_numpy(pixels)).last_hidden_state
