"""What processes tell each other. All of them must call, in the same order."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gathered(value: Any) -> list[Any]:
    """What each process has, in the order of processes: JSON-ready values."""
    text = json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(text)]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(content), np.int32)).tolist()
    padded = multihost_utils.process_allgather(np.pad(content, (0, max(sizes) - len(content))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]


def agreed(fine: bool) -> bool:
    """Whether all is fine in all processes. They come here whatever happened to each, having waited for no other since
    they last agreed."""
    return fine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(fine))))
