"""How many images a CPU encodes at a time."""

import math
from collections.abc import Sequence

AT_ONCE = 1_250_000
"""Pixel values: 8 images of 224 x 224, 2 of 384 x 384, one of a page. What more of them make falls out of caches."""


def slice_size(image: Sequence[int]) -> int:
    """Images of this shape (C, H, W) at a time."""
    return max(1, AT_ONCE // max(1, math.prod(image)))
