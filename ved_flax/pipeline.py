"""`ImageToText` on the Flax model."""

from ved_core import pipeline
from ved_flax.model import FlaxVisionEncoderDecoderModel


class ImageToText(pipeline.ImageToText):
    """Images in, texts with confidences out, on JAX."""

    model_class = FlaxVisionEncoderDecoderModel
