"""How many images are encoded at a time."""

import math
from collections.abc import Sequence

AT_ONCE = 1_250_000
"""Pixel values: 8 images of 224 x 224, 2 of 384 x 384, one of a page. What more of them make falls out of a CPU's
caches."""
AT_ONCE_TPU = 4_830_000
"""Of one TPU: 32 images of 224 x 224, 10 of 384 x 384, one of a page. What these make in bfloat16 stays in its core's
memory."""


def slice_size(image: Sequence[int], at_once: int | None = None) -> int:
    """Images of this shape (C, H, W) at a time, those of a CPU by default."""
    return max(1, (at_once or AT_ONCE) // max(1, math.prod(image)))


def even(count: int, most: int) -> int:
    """The size of slices of at most `most` that cut `count` evenly; as evenly as can be, where that would take more
    than twice as many."""
    size = math.ceil(count / math.ceil(count / most))
    return next((smaller for smaller in range(size, size // 2, -1) if count % smaller == 0), size)
