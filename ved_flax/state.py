"""A module's parameters as a flat {dotted name: array}, the vocabulary of the conversion tables."""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.tensors import Lazy, Tensor, each
from ved_flax.platforms import default_device

M = TypeVar("M", bound=nnx.Module)


class Frozen(nnx.Variable):
    """A parameter that training leaves as it is: no nnx.Param, so that `nnx.grad`, `nnx.Optimizer(wrt=nnx.Param)` and
    `nnx.split(model, nnx.Param, ...)` pass it by. It is computed with, counted and saved like any other."""


PARAMETERS = (nnx.Param, Frozen)
"""The kinds of variables that a checkpoint keeps."""


def freeze(module: nnx.Module) -> None:
    """Make every nnx.Param inside `module` a Frozen."""
    _retype(module, nnx.Param, Frozen)


def unfreeze(module: nnx.Module) -> None:
    """Make every Frozen inside `module` an nnx.Param again."""
    _retype(module, Frozen, nnx.Param)


def _retype(module: nnx.Module, old: type[nnx.Variable], new: type[nnx.Variable]) -> None:
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, old):
                setattr(part, name, new(value.get_raw_value(), **value.get_metadata()))


def _flat(module: nnx.Module) -> dict[str, Any]:
    """Dotted name -> variable, shared with the module."""
    return {dotted(path): param for path, param in nnx.to_flat_state(nnx.state(module, PARAMETERS))}


def dotted(path: Iterable[Any]) -> str:
    """A parameter's name."""
    return ".".join(map(str, path))


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, of an abstract module too."""
    return {name: param.shape for name, param in _flat(module).items()}


def tensors(module: nnx.Module) -> dict[str, Lazy]:
    """Every parameter, fetched to the host when it is used."""
    return {
        name: Lazy(tuple(param.shape), np.dtype(param.dtype), functools.partial(_fetched, param))
        for name, param in _flat(module).items()
    }


def _fetched(param: nnx.Variable) -> np.ndarray:
    return np.asarray(jax.device_get(param[...]))


def arrays(module: nnx.Module) -> dict[str, np.ndarray]:
    """Every parameter, fetched to the host."""
    return {name: _fetched(param) for name, param in _flat(module).items()}


def abstract(make: Callable[[], M]) -> M:
    """The module that `make` builds, with shapes for arrays: nothing is computed or allocated."""
    return nnx.eval_shape(make)


class Undrawn:
    """Stands for nnx.Rngs where `abstract` only describes a module: the same key for every parameter. Tracing a new one
    for each took most of the time of loading. To be made inside the function that is traced."""

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def params(self) -> jax.Array:
        """A key for a parameter."""
        return self.key


def fill(module: M, values: Mapping[str, Tensor | jax.Array], param_dtype: jnp.dtype) -> M:
    """Give an abstract module its arrays, on the default device."""
    wanted = {name: values[name] for name in shapes(module)}
    return assign(module, placed(wanted, param_dtype, default_device()))


def assign(module: M, arrays: Mapping[str, jax.Array]) -> M:
    """Give an abstract module arrays that are placed."""
    flat = nnx.to_flat_state(nnx.state(module, PARAMETERS))
    nnx.update(module, nnx.from_flat_state([(path, param.replace(arrays[dotted(path)])) for path, param in flat]))
    return module


def placed(values: Mapping[str, Tensor | jax.Array], param_dtype: jnp.dtype, device: Any) -> dict[str, jax.Array]:
    """The values on the device: one copy, and no other."""

    def place(value: Tensor | jax.Array) -> jax.Array:
        with jax.default_device(device):
            return _placed(value, param_dtype)

    return each(place, values)


def _placed(value: Tensor | jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The value on the default device, in memory of its own: on a CPU JAX would else share the mapped file's pages, and
    change with the file. What has to be transposed, rounded or made is copied by that."""
    if isinstance(value, np.ndarray) and value.dtype == dtype and value.flags.c_contiguous:
        return jnp.array(value)
    return jnp.asarray(np.asarray(value) if isinstance(value, Lazy) else value, dtype)


def initialised(make: Callable[[nnx.Rngs], nnx.Module], names: Collection[str], rngs: nnx.Rngs) -> dict[str, jax.Array]:
    """The named parameters of the module that `make` builds, without computing the others."""
    if not names:
        return {}

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        module = make(nnx.Rngs(key))
        return {name: param[...] for name, param in _flat(module).items() if name in names}

    return jax.jit(chosen)(rngs.params())


def parameter_count(module: nnx.Module, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """How many numbers the parameters hold; of those that are not frozen, or outside embedding tables."""
    parts = (part for _, part in nnx.iter_modules(module))
    tables = {id(part.embedding) for part in parts if exclude_embeddings and isinstance(part, nnx.Embed)}
    kinds = nnx.Param if only_trainable else PARAMETERS
    counted = (param for _, param in nnx.iter_graph(module) if isinstance(param, kinds) and id(param) not in tables)
    return sum(math.prod(param.shape) for param in counted)
