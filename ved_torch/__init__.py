"""Image-to-text models in PyTorch."""

from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.pipeline import Reading
from ved_torch.model import VisionEncoderDecoderModel
from ved_torch.pipeline import ImageToText

__all__ = ["ImageToText", "Reading", "VisionEncoderDecoderConfig", "VisionEncoderDecoderModel"]
