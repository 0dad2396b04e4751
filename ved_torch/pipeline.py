"""`ImageToText` on the PyTorch model."""

import numpy as np
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
