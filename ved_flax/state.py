"""A module's parameters as a flat {dotted name: array}, the vocabulary of the conversion tables."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def _flat(module: nnx.Module) -> dict[str, Any]:
    """Dotted name -> nnx.Param, shared with the module."""
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param))}


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, of an abstract module too."""
    return {name: param.shape for name, param in _flat(module).items()}


def arrays(module: nnx.Module) -> dict[str, np.ndarray]:
    """Every parameter, fetched to the host."""
    return {name: np.asarray(jax.device_get(param[...])) for name, param in _flat(module).items()}


def abstract(make: Callable[[], M]) -> M:
    """The module that `make` builds, with shapes for arrays: nothing is computed or allocated."""
    return nnx.eval_shape(make)


def fill(module: M, values: Mapping[str, np.ndarray | jax.Array], param_dtype: jnp.dtype) -> M:
    """Give an abstract module its arrays, on the default device: one copy, and no other."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    named = ((path, param, values[".".join(map(str, path))]) for path, param in flat)
    filled = [(path, param.replace(jnp.asarray(value, param_dtype))) for path, param, value in named]
    nnx.update(module, nnx.from_flat_state(filled))
    return module


def initialised(make: Callable[[nnx.Rngs], nnx.Module], names: Collection[str], rngs: nnx.Rngs) -> dict[str, jax.Array]:
    """The named parameters of the module that `make` builds, without computing the others."""
    if not names:
        return {}

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        module = make(nnx.Rngs(key))
        return {name: param[...] for name, param in _flat(module).items() if name in names}

    return jax.jit(chosen)(rngs.params())


def parameter_count(module: nnx.Module) -> int:
    """How many numbers the parameters hold."""
    return sum(int(np.prod(shape)) for shape in shapes(module).values())
