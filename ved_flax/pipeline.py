"""`ImageToText` on the Flax model."""

from typing import Any

import jax

from ved_core import pipeline
from ved_flax.model import FlaxVisionEncoderDecoderModel


class ImageToText(pipeline.ImageToText):
    """Images in, texts with confidences out, on JAX."""

    model_class = FlaxVisionEncoderDecoderModel

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"prng_key": jax.random.key(seed)}
