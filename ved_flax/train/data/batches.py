"""Placeholder of this branch: the data pipeline is another's work."""

from typing import Any

from ved_core.errors import ConfigError
from ved_flax.train.data.config import DataConfig


def training_batches(config: DataConfig, processor: Any, **options: Any) -> Any:
    raise ConfigError(f"data.source = {config.source!r} cannot be opened")
