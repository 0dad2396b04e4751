"""`Half`: what an encoder and a decoder have beside their parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from conversion import checkpoint
from conversion.tables import part_table
from ved_core.configs import Config
from ved_flax import state


class AttachedHalf:
    """What belongs to a half and is no part of its graph: equal only to itself, so that NNX and JAX pass it along."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.carried: dict[str, np.ndarray] | None = None


class Half(nnx.Module):
    """An encoder or a decoder."""

    def __init__(self, config: Config) -> None:
        self.attached = AttachedHalf(config)

    @property
    def config(self) -> Any:
        """The half's part of the model's configuration."""
        return self.attached.config

    @config.setter
    def config(self, value: Config) -> None:
        self.attached.config = value

    @property
    def carried(self) -> dict[str, np.ndarray]:
        """Stored tensors that decoding never uses (poolers), by their names in the half's own checkpoint."""
        if self.attached.carried is None:
            self.attached.carried = checkpoint.new_carried(part_table(self.config), seed=0)
        return self.attached.carried

    def carry(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Set `carried`; a setter would not do, as NNX refuses to assign arrays that are no parameters."""
        self.attached.carried = dict(tensors)

    def save_pretrained(
        self, folder: str | Path, *, format: str = "safetensors", max_shard_size: int | str | None = None
    ) -> None:
        """Write the half by itself, config.json and model.safetensors: what transformers' AutoModel (an encoder) or
        AutoModelForCausalLM (a decoder) and `from_encoder_decoder_pretrained` load. A projection between the halves is
        in neither; `ved convert --part` keeps it. The other arguments are a whole model's."""
        weights = checkpoint.Weights(state.tensors(self), self.carried)
        checkpoint.save_part(Path(folder), weights, self.config, "flax", format, max_shard_size)
