"""`DataConfig`: where examples come from."""

import dataclasses

from ved_core.configs import fields


@dataclasses.dataclass
class DataConfig:
    """Section `data`."""

    batch_size: int = fields.size(16)
    """Images of a step, over all processes, devices and accumulation steps."""
    max_length: int = fields.size(64)
    """Most tokens of a text, its end token included."""
    seed: int = 0
    """Of shuffling."""
