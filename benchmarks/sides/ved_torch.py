"""Our PyTorch side. `OMP_NUM_THREADS` says how many threads."""

from typing import Any

import numpy as np
import torch

from benchmarks.sides.base import Base
from ved_torch import VisionEncoderDecoderModel


class Side(Base):
    """VisionEncoderDecoderModel of ved_torch."""

    def load(self) -> Any:
        return VisionEncoderDecoderModel.from_pretrained(self.place)

    def run(self, pixels: np.ndarray, beams: int, new: int) -> np.ndarray:
        ids = self.model.generate(pixels, num_beams=beams, do_sample=False, min_new_tokens=new, max_new_tokens=new)
        return ids.numpy()

    @torch.no_grad()
    def encoded(self, pixels: np.ndarray) -> Any:
        return self.model.encode(pixels)
