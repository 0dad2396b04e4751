"""`Half`: what an encoder and a decoder have beside their parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from conversion import checkpoint
from conversion.tables import part_table
from ved_torch import state


class Half(nn.Module):
    """An encoder or a decoder. `config`: its part of the model's configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self._carried: dict[str, np.ndarray] | None = None

    @property
    def carried(self) -> dict[str, np.ndarray]:
        """Stored tensors that decoding never uses (poolers), by their names in the half's own checkpoint."""
        if self._carried is None:
            self._carried = checkpoint.new_carried(part_table(self.config), seed=0)
        return self._carried

    @carried.setter
    def carried(self, value: Mapping[str, np.ndarray]) -> None:
        self._carried = dict(value)

    def save_pretrained(
        self, folder: str | Path, *, format: str = "safetensors", max_shard_size: int | str | None = None
    ) -> None:
        """Write the half by itself, config.json and model.safetensors: what transformers' AutoModel (an encoder) or
        AutoModelForCausalLM (a decoder) and `from_encoder_decoder_pretrained` load. A projection between the halves is
        in neither; `ved convert --part` keeps it. The other arguments are a whole model's."""
        weights = checkpoint.Weights(state.tensors(self), self.carried)
        checkpoint.save_part(Path(folder), weights, self.config, "torch", format, max_shard_size)
