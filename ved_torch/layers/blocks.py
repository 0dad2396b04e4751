"""`Blocks`: a list of layers whose activations can be computed again in the backward pass instead of kept."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Blocks(nn.ModuleList):
    """Layers, called through `run`. `checkpointing`: arguments of torch's checkpoint, None where it is off."""

    checkpointing: Mapping[str, Any] | None = None

    def run(self, block: nn.Module, *args: Any) -> Any:
        """block(*args), keeping only its arguments for the backward pass where checkpointing is on."""
        if self.checkpointing is None or not (self.training and torch.is_grad_enabled()):
            return block(*args)
        return checkpoint(block, *args, **self.checkpointing)


def set_checkpointing(module: nn.Module, options: Mapping[str, Any] | None) -> None:
    """Turn it on or off (None) in every list of layers inside `module`."""
    for part in module.modules():
        if isinstance(part, Blocks):
            part.checkpointing = options
