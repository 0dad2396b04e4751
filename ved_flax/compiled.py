"""The model's steps as compiled functions over a pure dict of parameters.

`jit_steps(model)` compiles for one device (or for however the arguments are sharded); `pmap_steps(model)` has the same
functions with a leading device axis on every argument but the parameters, sharding the batch over the local devices.
Closing over the graph definition keeps a call's overhead at that of jitting a plain function.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from ved_core.generation import DecodingPlan
from ved_flax.generate import Generated, greedy
from ved_flax.layers.cache import Cache

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel

Params = dict[str, Any]


class Encode(Protocol):
    """(params, pixel_values (B, C, H, W)) -> last hidden state (B, P, D)."""

    def __call__(self, params: Params, pixel_values: jax.Array) -> jax.Array: ...


class InitCache(Protocol):
    """(params, encoded (B, P, D), length) -> a cache for `length` tokens, cross-attention's part filled."""

    def __call__(self, params: Params, encoded: jax.Array, length: int) -> Cache: ...


class DecodeStep(Protocol):
    """(params, ids (B,), cache) -> scores (B, V) float32 and the next cache. The given cache's memory is reused: do not
    read it again."""

    def __call__(self, params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]: ...


class Generate(Protocol):
    """(params, pixel_values, plan) -> Generated: encoder, caches and the whole loop in one program, compiled once for
    each plan and shape."""

    def __call__(self, params: Params, pixel_values: jax.Array, plan: DecodingPlan) -> Generated: ...


class Steps(NamedTuple):
    """Compiled functions of one model."""

    encode: Encode
    init_cache: InitCache
    decode_step: DecodeStep
    generate: Generate


def parameters(model: nnx.Module) -> Params:
    """The model's parameters as a pure, nested dict of arrays, sharing their memory."""
    return nnx.to_pure_dict(nnx.state(model))


def jit_steps(model: "FlaxVisionEncoderDecoderModel", *, interpolate_pos_encoding: bool = False) -> Steps:
    """Functions compiled by `jax.jit`, in evaluation mode whatever mode the model is in."""
    steps = _steps(model, interpolate_pos_encoding)
    return Steps(
        jax.jit(steps.encode),
        jax.jit(steps.init_cache, static_argnums=2),
        jax.jit(steps.decode_step, donate_argnums=2),
        jax.jit(steps.generate, static_argnums=2),
    )


def pmap_steps(model: "FlaxVisionEncoderDecoderModel", *, interpolate_pos_encoding: bool = False) -> Steps:
    """The twins of `jit_steps` compiled by `jax.pmap`. Arguments come through `shard`, results go through `unshard`;
    parameters are given as they are and replicated."""
    steps = _steps(model, interpolate_pos_encoding)
    return Steps(
        jax.pmap(steps.encode, in_axes=(None, 0)),
        jax.pmap(steps.init_cache, in_axes=(None, 0, None), static_broadcasted_argnums=2),
        jax.pmap(steps.decode_step, in_axes=(None, 0, 0), donate_argnums=2),
        jax.pmap(steps.generate, in_axes=(None, 0, None), static_broadcasted_argnums=2),
    )


def shard(array: jax.Array | np.ndarray, devices: int | None = None) -> jax.Array | np.ndarray:
    """(B, ...) to (devices, B / devices, ...), over all local devices by default.

    Raises ValueError where the batch does not divide: pad it.
    """
    devices = jax.local_device_count() if devices is None else devices
    if array.shape[0] % devices:
        raise ValueError(f"a batch of {array.shape[0]} does not divide over {devices} devices: pad it")
    return array.reshape(devices, array.shape[0] // devices, *array.shape[1:])


def unshard(array: jax.Array) -> jax.Array:
    """(devices, B, ...) back to (devices * B, ...)."""
    return array.reshape(-1, *array.shape[2:])


def _steps(model: "FlaxVisionEncoderDecoderModel", interpolate_pos_encoding: bool) -> Steps:
    """The functions that are compiled: pure in their parameters."""
    graphdef = nnx.graphdef(model)

    def bind(params: Params) -> "FlaxVisionEncoderDecoderModel":
        bound = nnx.merge(graphdef, params)
        bound.eval()
        return bound

    def encode(params: Params, pixel_values: jax.Array) -> jax.Array:
        return bind(params).encode(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state

    def init_cache(params: Params, encoded: jax.Array, length: int) -> Cache:
        return bind(params).init_cache(encoded.shape[0], length, encoded)

    def decode_step(
        params: Params, ids: jax.Array, cache: Cache, head_kernel: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        output = bind(params).decoder(ids[:, None], cache=cache, head_kernel=head_kernel)
        assert output.cache is not None
        return output.logits[:, 0], output.cache

    def generate(params: Params, pixel_values: jax.Array, plan: DecodingPlan) -> Generated:
        cache = init_cache(params, encode(params, pixel_values), plan.max_length - 1)
        head_kernel = bind(params).decoder.head_kernel()
        return greedy(lambda ids, cache: decode_step(params, ids, cache, head_kernel), cache, plan)

    return Steps(encode, init_cache, decode_step, generate)
