"""`DataConfig`: where examples come from."""

import dataclasses


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Section `data`."""

    source: str = dataclasses.field(default="", metadata={"doc": "Training samples."})
    max_length: int = dataclasses.field(default=64, metadata={"doc": "Label tokens of a text, end token included."})
    seed: int = dataclasses.field(default=0, metadata={"doc": "What order and augmentation are drawn from."})
