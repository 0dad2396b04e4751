"""`ImageToText` on the PyTorch model."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ved_core import pipeline
from ved_torch.model import VisionEncoderDecoderModel
from ved_torch.state import to_numpy


class ImageToText(pipeline.ImageToText):
    """Images in, texts with confidences out, on PyTorch."""

    model_class = VisionEncoderDecoderModel

    @staticmethod
    def to_numpy(array: Tensor) -> np.ndarray:
        return to_numpy(array)

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"generator": torch.Generator().manual_seed(seed)}
