"""What a train step of the benchmarks is given: ViT-S + 6-layer GPT-2, in every framework alike."""

import numpy as np

from benchmarks import models

BATCH, TOKENS = 8, 32
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images (B, C, H, W) and labels (B, T), none of them ignored."""
    rng = np.random.default_rng(0)
    height, width = models.size(models.TRAINED)
    pixels = rng.standard_normal((BATCH, 3, height, width), np.float32)
    return pixels, rng.integers(0, 50000, (BATCH, TOKENS))
