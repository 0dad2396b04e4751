"""The model's steps as compiled functions over a pure dict of parameters.

`jit_steps(model)` compiles for one device (or for however the arguments are sharded); `pmap_steps(model)` has the same
functions with a leading device axis on every argument but the parameters and the numbers of a request, sharding the
batch over the local devices. Closing over the graph definition keeps a call's overhead at that of jitting a plain
function.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_flax.decoders.base import Decoder
from ved_flax.generation import loop
from ved_flax.generation.loop import Generated
from ved_flax.generation.state import State, initial
from ved_flax.layers import cache as caches
from ved_flax.layers.cache import Cache
from ved_flax.outputs import DecoderOutput, EncoderOutput
from ved_flax.platforms import traced_for
from ved_flax.slicing import in_slices

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel

ArrayLike = jax.Array | np.ndarray
Params = dict[str, Any]
Graph = nnx.GraphDef[Any]
T = TypeVar("T")


class Encode(Protocol):
    """(params, pixel_values (B, C, H, W)) -> last hidden state (B, P, D)."""

    def __call__(self, params: Params, pixel_values: ArrayLike) -> jax.Array: ...


class EncodeAll(Protocol):
    """(params, pixel_values (B, C, H, W), attentions, hidden states) -> the encoder's outputs."""

    def __call__(
        self, params: Params, pixel_values: ArrayLike, attentions: bool, hidden_states: bool
    ) -> EncoderOutput: ...


class InitCache(Protocol):
    """(params, encoded (B, P, D), length) -> a cache for `length` tokens, cross-attention's part filled."""

    def __call__(self, params: Params, encoded: jax.Array, length: int) -> Cache: ...


class DecodeStep(Protocol):
    """(params, ids (B,), cache) -> scores (B, V) float32 and the next cache. The given cache's memory is reused: do not
    read it again."""

    def __call__(self, params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]: ...


class Start(Protocol):
    """(params, encoded (B, P, D), rows, numbers, plan) -> the state of a decoding loop, the prompt in its cache."""

    def __call__(self, params: Params, encoded: jax.Array, rows: Rows, numbers: Numbers, plan: Plan) -> State: ...


class Advance(Protocol):
    """(params, state, rows, numbers, until, plan) -> the state after steps until `until` tokens were generated or all
    rows have ended. The given state's memory is reused: do not read it again."""

    def __call__(self, params: Params, state: State, rows: Rows, numbers: Numbers, until: int, plan: Plan) -> State: ...


class Search(Protocol):
    """(params, encoded (B, P, D), rows, numbers, plan) -> Generated: caches, prompt and the whole loop in one program,
    compiled once for each plan and shape, whatever the numbers."""

    def __call__(self, params: Params, encoded: jax.Array, rows: Rows, numbers: Numbers, plan: Plan) -> Generated: ...


class Inspect(Protocol):
    """(params, encoded (B, P, D), ids (R, L), rows, plan, attentions, hidden states) -> the decoder's outputs at
    generated tokens, those of R / B sequences of each image."""

    def __call__(
        self,
        params: Params,
        encoded: jax.Array,
        ids: jax.Array,
        rows: Rows,
        plan: Plan,
        attentions: bool,
        hidden_states: bool,
    ) -> DecoderOutput: ...


class Attend(Protocol):
    """(params, encoded (B, P, D), ids (R, L), rows, plan, layers, heads) -> cross-attention at generated tokens (R, L -
    prompt, P), the mean of these layers and heads or, where None, of all."""

    def __call__(
        self,
        params: Params,
        encoded: jax.Array,
        ids: jax.Array,
        rows: Rows,
        plan: Plan,
        layers: tuple[int, ...] | None,
        heads: tuple[int, ...] | None,
    ) -> jax.Array: ...


class Steps(NamedTuple):
    """Compiled functions of one model."""

    encode: Encode
    encode_all: EncodeAll
    init_cache: InitCache
    decode_step: DecodeStep
    start: Start
    advance: Advance
    search: Search
    inspect: Inspect
    attend: Attend

    def generate(self, params: Params, pixel_values: jax.Array, rows: Rows, numbers: Numbers, plan: Plan) -> Generated:
        """Images to sequences: `encode`, which every plan shares, and `search`."""
        return self.search(params, self.encode(params, pixel_values), rows, numbers, plan)


def parameters(model: nnx.Module) -> Params:
    """The model's parameters as a pure, nested dict of arrays, sharing their memory."""
    return nnx.to_pure_dict(nnx.state(model))


def jit_steps(model: "FlaxVisionEncoderDecoderModel", *, interpolate_pos_encoding: bool = False) -> Steps:
    """Functions compiled by `jax.jit`, in evaluation mode whatever mode the model is in."""
    return jitted(structure(model), interpolate_pos_encoding)


def jitted(graphdef: Graph, interpolate_pos_encoding: bool, platform: str | None = None) -> Steps:
    """`jit_steps` of all models of a structure, for one platform where it is known."""
    steps = Steps._make(traced_for(platform, step) for step in pure_steps(graphdef, interpolate_pos_encoding))
    return Steps(
        jax.jit(steps.encode),
        jax.jit(steps.encode_all, static_argnums=(2, 3)),
        jax.jit(steps.init_cache, static_argnums=2),
        jax.jit(steps.decode_step, donate_argnums=2),
        jax.jit(steps.start, static_argnums=4),
        jax.jit(steps.advance, static_argnums=5, donate_argnums=1),
        jax.jit(steps.search, static_argnums=4),
        jax.jit(steps.inspect, static_argnums=(4, 5, 6)),
        jax.jit(steps.attend, static_argnums=(4, 5, 6)),
    )


def pmap_steps(model: "FlaxVisionEncoderDecoderModel", *, interpolate_pos_encoding: bool = False) -> Steps:
    """The twins of `jit_steps` compiled by `jax.pmap`. Arguments come through `shard`, results go through `unshard`;
    parameters and a request's numbers are given as they are and replicated."""
    steps = pure_steps(structure(model), interpolate_pos_encoding)
    return Steps(
        jax.pmap(steps.encode, in_axes=(None, 0)),
        jax.pmap(steps.encode_all, in_axes=(None, 0, None, None), static_broadcasted_argnums=(2, 3)),
        jax.pmap(steps.init_cache, in_axes=(None, 0, None), static_broadcasted_argnums=2),
        jax.pmap(steps.decode_step, in_axes=(None, 0, 0), donate_argnums=2),
        jax.pmap(steps.start, in_axes=(None, 0, 0, None, None), static_broadcasted_argnums=4),
        jax.pmap(steps.advance, in_axes=(None, 0, 0, None, None, None), static_broadcasted_argnums=5, donate_argnums=1),
        jax.pmap(steps.search, in_axes=(None, 0, 0, None, None), static_broadcasted_argnums=4),
        jax.pmap(steps.inspect, in_axes=(None, 0, 0, 0, None, None, None), static_broadcasted_argnums=(4, 5, 6)),
        jax.pmap(steps.attend, in_axes=(None, 0, 0, 0, None, None, None), static_broadcasted_argnums=(4, 5, 6)),
    )


def shard(tree: T, devices: int | None = None) -> T:
    """Arrays (B, ...), one or a tree of them, to (devices, B / devices, ...), over all local devices by default.

    Raises ValueError where the batch does not divide: pad it.
    """
    count = jax.local_device_count() if devices is None else devices

    def split(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        if array.shape[0] % count:
            raise ValueError(f"a batch of {array.shape[0]} does not divide over {count} devices: pad it")
        return array.reshape(count, array.shape[0] // count, *array.shape[1:])

    return jax.tree.map(split, tree)


def unshard(tree: T) -> T:
    """(devices, B, ...) back to (devices * B, ...)."""
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), tree)


def structure(model: "FlaxVisionEncoderDecoderModel") -> Graph:
    """What a model is beside its parameters, in evaluation mode, whatever mode it is in."""
    own = nnx.merge(*nnx.split(model))  # shares the arrays
    own.eval()
    own.gradient_checkpointing_disable()  # nothing goes backward here
    own.scan_layers(False)  # which copies the parameters
    return nnx.graphdef(own)


def pure_steps(graphdef: Graph, interpolate_pos_encoding: bool) -> Steps:
    """The functions that are compiled: pure in their parameters."""

    def bind(params: Params) -> "FlaxVisionEncoderDecoderModel":
        return nnx.merge(graphdef, params)

    def encode(params: Params, pixel_values: ArrayLike) -> jax.Array:
        return in_slices(
            lambda pixels: encode_all(params, pixels, False, False).last_hidden_state, jnp.asarray(pixel_values)
        )

    def encode_all(params: Params, pixel_values: ArrayLike, attentions: bool, hidden_states: bool) -> EncoderOutput:
        return bind(params).encode(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=attentions,
            output_hidden_states=hidden_states,
        )

    def init_cache(params: Params, encoded: jax.Array, length: int) -> Cache:
        return bind(params).init_cache(encoded.shape[0], length, encoded)

    def decode_step(params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        logits, cache = bind(params).decoder.step(ids[:, None], cache)
        return logits[:, 0], cache

    def positions(decoder: Decoder, rows: Rows, plan: Plan) -> jax.Array:
        """Of the prompt's tokens (B or 1, T)."""
        if plan.masked:
            return jnp.maximum(jnp.cumsum(rows.mask_BT, axis=1) - 1, 0)
        counted = decoder.count_positions(jnp.asarray(rows.prompt_BT), plan.prompt, 0)
        return jnp.atleast_2d(counted)

    def start(params: Params, encoded: jax.Array, rows: Rows, numbers: Numbers, plan: Plan) -> State:
        model = bind(params)
        cache = model.init_cache(encoded.shape[0], plan.slots, encoded)
        if plan.prompt > 1:
            output = model.decoder(
                jnp.asarray(rows.prompt_BT)[:, :-1],
                attention_mask=jnp.asarray(rows.mask_BT)[:, :-1],
                cache=cache,
                positions=positions(model.decoder, rows, plan)[:, :-1],
            )
            assert output.cache is not None
            cache = output.cache
        return initial(cache, rows, numbers, plan, model.config.decoder.vocab_size)

    def advance(params: Params, state: State, rows: Rows, numbers: Numbers, until: int, plan: Plan) -> State:
        decoder = bind(params).decoder

        def step(
            ids_BK: jax.Array, cache: Cache, visible_BKC: jax.Array, position_B1: jax.Array
        ) -> tuple[jax.Array, Cache]:
            return decoder.step(ids_BK, cache, positions=position_B1, visible=visible_BKC)

        first_B = jnp.broadcast_to(positions(decoder, rows, plan)[:, -1], rows.row_B.shape)
        state = state._replace(cache=caches.without_batch(state.cache))
        state = loop.advance(step, state, first_B, rows, numbers, plan, until)
        return state._replace(cache=caches.with_batch(state.cache))

    def search(params: Params, encoded: jax.Array, rows: Rows, numbers: Numbers, plan: Plan) -> Generated:
        state = start(params, encoded, rows, numbers, plan)
        return loop.result(advance(params, state, rows, numbers, plan.steps, plan), plan)

    def inspect(
        params: Params,
        encoded: jax.Array,
        ids: jax.Array,
        rows: Rows,
        plan: Plan,
        attentions: bool,
        hidden_states: bool,
    ) -> DecoderOutput:
        times, new = len(ids) // len(encoded), ids.shape[1] - plan.prompt
        mask = jnp.pad(jnp.asarray(rows.mask_BT), ((0, 0), (0, new)), constant_values=True)
        model = bind(params)
        before = jnp.broadcast_to(positions(model.decoder, rows, plan), rows.mask_BT.shape)
        behind = jnp.asarray(rows.mask_BT).sum(axis=1)[:, None] + jnp.arange(new)
        output = model.decoder(
            ids[:, :-1],
            attention_mask=mask.repeat(times, axis=0)[:, :-1],
            encoder_hidden_states=model.project(encoded.repeat(times, axis=0)),
            positions=jnp.concatenate([before, behind], axis=1).repeat(times, axis=0)[:, :-1],
            output_attentions=attentions,
            output_hidden_states=hidden_states,
        )
        first = plan.prompt - 1
        return jax.tree.map(lambda x: x[:, :, first:] if x.ndim == 4 else x[:, first:], output)

    def attend(
        params: Params,
        encoded: jax.Array,
        ids: jax.Array,
        rows: Rows,
        plan: Plan,
        layers: tuple[int, ...] | None,
        heads: tuple[int, ...] | None,
    ) -> jax.Array:
        weights = inspect(params, encoded, ids, rows, plan, True, False).cross_attentions
        assert weights is not None
        chosen = [weights[layer] for layer in (layers or range(len(weights)))]
        means = [(x if heads is None else x[:, jnp.array(heads)]).astype(jnp.float32).mean(axis=1) for x in chosen]
        return sum(means[1:], means[0]) / len(means)

    return Steps(encode, encode_all, init_cache, decode_step, start, advance, search, inspect, attend)
