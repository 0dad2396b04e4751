"""Where a program will run: what differs by that is decided while it is traced, or compiled."""

import functools
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType

F = TypeVar("F", bound=Callable[..., Any])

_traced_for: ContextVar[str | None] = ContextVar("traced_for", default=None)


def choose(*operands: Any, default: Callable[..., Any], **platforms: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, which traces the functions of all platforms; inside what is `traced_for` one, just
    that platform's."""
    platform = _traced_for.get()
    if platform is None:
        return jax.lax.platform_dependent(*operands, default=default, **platforms)
    return platforms.get(platform, default)(*operands)


def traced_for(platform: str | None, function: F) -> F:
    """The function, to be traced for a platform where that is known: in half the time."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        token = _traced_for.set(platform)
        try:
            return function(*args, **kwargs)
        finally:
            _traced_for.reset(token)

    return function if platform is None else run  # type: ignore[return-value]


def default_device() -> Any:
    """This thread's, as `jax.default_device` takes it."""
    return jax.config.jax_default_device  # type: ignore[attr-defined]


def platform_of(array: Any) -> str | None:
    """Where programs run that take the array: None where it is traced or only a shape."""
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    if not array.committed:  # it goes wherever programs go
        device = default_device()
        return device if isinstance(device, str) else (device or jax.devices()[0]).platform
    return next(iter(array.devices())).platform


def devices_of(x: jax.Array) -> int:
    """How many devices share an array, as far as tracing knows: those of the mesh that it lies on."""
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(
        size for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind is not AxisType.Manual
    )
