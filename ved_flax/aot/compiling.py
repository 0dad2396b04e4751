"""From a jitted function and shapes to a program for a TPU that is not there."""

import re
from typing import Any

import jax

from ved_core.errors import VedError


def compile_ahead(function: Any, *arguments: Any) -> jax.stages.Compiled:
    """Compile a `jax.jit` for the devices that the shardings of its arguments (trees of ShapeDtypeStruct) name.

    Raises VedError where the compiler says that their memory does not suffice.
    """
    lowered = function.trace(*arguments).lower(lowering_platforms=("tpu",))
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\w.]+) of ([\w.]+) (\w+)", str(error))
        amount = f"{used[1]} where a chip has {used[2]} ({used[3]})" if used else str(error).partition("\n")[0]
        raise VedError(f"it does not fit the chips' memory: it would take {amount}") from error


def described(tree: Any, sharding: Any) -> Any:
    """A tree of arrays or shapes as shapes that lie so."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
