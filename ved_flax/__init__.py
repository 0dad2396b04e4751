"""Image-to-text models in Flax NNX: for TPU, GPU and CPU."""

from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.pipeline import Reading
from ved_flax.model import FlaxVisionEncoderDecoderModel
from ved_flax.pipeline import ImageToText

__all__ = ["FlaxVisionEncoderDecoderModel", "ImageToText", "Reading", "VisionEncoderDecoderConfig"]
