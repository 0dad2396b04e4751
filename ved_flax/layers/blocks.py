"""`Blocks`: a list of layers whose activations can be computed again in the backward pass instead of kept, and which
can be compiled once, as a loop."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ved_core.errors import ConfigError

B = TypeVar("B", bound=nnx.Module)
Policy = Callable[..., Any]
"""Which intermediate values are kept all the same: one of `jax.checkpoint_policies`."""


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """How activations are computed again; without a policy, nothing but each layer's arguments is kept."""

    policy: Policy | None = None


class Blocks(nnx.List[B]):
    """Layers, called one by one through `run`, or all through `scan`. `checkpointing`: None where it is off; `scanned`:
    whether the owner should call `scan` where it needs nothing of the single layers."""

    checkpointing: Checkpointing | None = None
    scanned: bool = False

    def run(self, block: B, *args: Any, **static: Any) -> Any:
        """block(*args, **static), keeping only its arguments for the backward pass where checkpointing is on.

        `static`: what is no array and no tree of arrays.
        """

        def call(block: Any, *args: Any) -> Any:
            return block(*args, **static)

        if self.checkpointing is None:
            return call(block, *args)
        return nnx.remat(call, policy=self.checkpointing.policy)(block, *args)

    def scan(
        self, call: Callable[..., jax.Array], x: jax.Array, rngs: nnx.Rngs | None, *own: Sequence[Any]
    ) -> jax.Array:
        """x through every layer, call(layer, x, rngs, *its own of each of `own`) -> x, as one `jax.lax.scan` over the
        stacked parameters: they are copied, and the program is that of a single layer. Layers' random keys are others
        than they are one by one."""
        graphdef = nnx.graphdef(self[0])
        states = [nnx.to_pure_dict(nnx.state(block)) for block in self]
        keys = None if rngs is None else jax.random.split(rngs.dropout(), len(self))

        def step(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            parameters, key, own = layer
            return call(nnx.merge(graphdef, parameters), x, None if key is None else nnx.Rngs(dropout=key), *own), None

        if self.checkpointing is not None:
            step = jax.checkpoint(step, policy=self.checkpointing.policy, prevent_cse=False)
        layers = stacked(states), keys, tuple(stacked(values) for values in own)
        return jax.lax.scan(step, x, layers)[0]


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of equal structure as one, along a new first axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def lists(module: nnx.Module) -> Iterator[tuple[nnx.Module, Blocks[Any]]]:
    """Every list of layers inside `module`, behind its owner."""
    for _, part in nnx.iter_modules(module):
        for value in list(vars(part).values()):
            if isinstance(value, Blocks):
                yield part, value


def set_scanning(module: nnx.Module, on: bool) -> None:
    """Turn `scanned` on or off in every list of layers inside `module`.

    Raises ConfigError where layers differ in more than their parameters' values, or their owner cannot scan them.
    """
    found = list(lists(module))
    for owner, blocks in found if on else ():
        if not getattr(owner, "scans", False):
            raise ConfigError(f"the layers of {type(owner).__name__} differ in their windows: they cannot be scanned")
        for number, block in enumerate(blocks):
            if difference := differ(blocks[0], block):
                raise ConfigError(
                    f"layers 0 and {number} of {type(owner).__name__} differ in {difference}: they cannot be scanned. "
                    "Give all layers the same (drop_path_rate: 0, for one), or leave scanning off"
                )
    for _, blocks in found:
        blocks.scanned = on


def differ(one: nnx.Module, other: nnx.Module) -> str | None:
    """What makes two layers two different programs, if anything does."""
    parts = [dict(nnx.iter_modules(layer)) for layer in (one, other)]
    for path in parts[0].keys() | parts[1].keys():
        pair = [part.get(path) for part in parts]
        values = [{n: v for n, v in vars(p).items() if isinstance(v, Plain)} if p else None for p in pair]
        if values[0] is None or values[1] is None or type(pair[0]) is not type(pair[1]):
            return ".".join(map(str, path)) or "their kind"
        for name in values[0].keys() | values[1].keys():
            if values[0].get(name) != values[1].get(name):
                return ".".join(map(str, (*path, name)))
    shapes = [
        jax.tree.map(lambda array: (array.shape, array.dtype), nnx.to_pure_dict(nnx.state(p))) for p in (one, other)
    ]
    if shapes[0] != shapes[1]:
        return "their parameters' shapes"
    return None if nnx.graphdef(one) == nnx.graphdef(other) else "what they are made of"


Plain = int | float | str | bool | None
"""What a setting of a layer is."""


def set_checkpointing(module: nnx.Module, options: Checkpointing | None) -> None:
    """Turn it on or off (None) in every list of layers inside `module`."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Blocks):
            part.checkpointing = options
