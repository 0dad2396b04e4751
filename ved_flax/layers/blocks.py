"""`Blocks`: a list of layers whose activations can be computed again in the backward pass instead of kept."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx

B = TypeVar("B", bound=nnx.Module)
Policy = Callable[..., Any]
"""Which intermediate values are kept all the same: one of `jax.checkpoint_policies`."""


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """How activations are computed again; without a policy, nothing but each layer's arguments is kept."""

    policy: Policy | None = None


class Blocks(nnx.List[B]):
    """Layers, called through `run`. `checkpointing`: None where it is off."""

    checkpointing: Checkpointing | None = None

    def run(self, block: B, *args: Any, **static: Any) -> Any:
        """block(*args, **static), keeping only its arguments for the backward pass where checkpointing is on.

        `static`: what is no array and no tree of arrays.
        """

        def call(block: Any, *args: Any) -> Any:
            return block(*args, **static)

        if self.checkpointing is None:
            return call(block, *args)
        return nnx.remat(call, policy=self.checkpointing.policy)(block, *args)


def set_checkpointing(module: nnx.Module, options: Checkpointing | None) -> None:
    """Turn it on or off (None) in every list of layers inside `module`."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Blocks):
            part.checkpointing = options
