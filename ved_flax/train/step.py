"""The train step: one pure function of state and batch, whatever it is compiled for."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ved_core.errors import ConfigError
from ved_flax import platforms
from ved_flax import state as states
from ved_flax.compiled import Params
from ved_flax.loss import Sums, cross_entropy_sums

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel

Arrays = dict[str, jax.Array]
"""Dotted parameter name -> array."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes or reads, but the batch."""

    step: jax.Array
    """() int32: batches seen."""
    skipped: jax.Array
    """() int32: those among them that changed nothing."""
    key: jax.Array
    """uint32: data of the key that all randomness comes from."""
    params: Arrays
    """What is trained, float32."""
    frozen: Arrays
    """What stays as it is."""
    average: Arrays
    """Moving average of `params`; empty where there is none."""
    optimizer: Any
    """optax's state."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceBatch:
    """A step's rows on the devices, as in `batches.Batch`."""

    pixel_values: jax.Array
    labels: jax.Array
    weight: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step says about itself, numbers of the whole batch."""

    loss: jax.Array
    accuracy: jax.Array
    """Share of tokens that had the highest score, in training mode."""
    tokens: jax.Array
    """Labels that counted."""
    rows: jax.Array
    """Examples."""
    grad_norm: jax.Array
    """Of the gradient before clipping."""
    learning_rate: jax.Array
    """Of this update, before multipliers."""
    finite: jax.Array
    """Whether loss and gradient were. The state changed only if so."""


Gather = Callable[[Arrays, Arrays, Any], tuple[Arrays, Arrays]]
"""Of parameters, trained and frozen, and what is computed in."""
Step = Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]
Learned = tuple[Arrays, Arrays, Any]
"""Parameters, their moving average, and optax's state."""


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a step computes beside the model. `accumulation`: parts that a batch is cut into; `decay`: of the moving
    average, None for none."""

    accumulation: int = 1
    smoothing: float = 0.0
    z_loss: float = 0.0
    decay: float | None = None
    interpolate_pos_encoding: bool = False


def split_parameters(
    model: "FlaxVisionEncoderDecoderModel", freezes: Callable[[str], bool] = lambda name: False
) -> tuple[Arrays, Arrays]:
    """A model's parameters: those to train, and those that are frozen in it already or that `freezes` says.

    Raises ConfigError where none is left to train.
    """
    params: Arrays = {}
    frozen: Arrays = {}
    for path, param in nnx.to_flat_state(nnx.state(model, states.PARAMETERS)):
        name = states.dotted(path)
        (frozen if isinstance(param, states.Frozen) or freezes(name) else params)[name] = param.get_raw_value()
    if not params:
        raise ConfigError("all parameters are frozen: leave optimizer.freeze or optimizer.freeze_encoder out")
    return params, frozen


def nested(model: nnx.Module) -> Callable[[Arrays], Params]:
    """From flat arrays to the pure dict that `ved_flax.compiled` takes and the model's graph is merged with."""
    paths = {states.dotted(path): path for path, _ in nnx.to_flat_state(nnx.state(model, states.PARAMETERS))}
    return lambda arrays: nnx.traversals.unflatten_mapping({paths[name]: value for name, value in arrays.items()})


def initial_state(
    params: Arrays, frozen: Arrays, optimizer: optax.GradientTransformation, seed: int, *, average: bool = False
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        params=params,
        frozen=frozen,
        average=jax.tree.map(jnp.copy, params) if average else {},
        optimizer=optimizer.init(params),
    )


def make_step(
    model: "FlaxVisionEncoderDecoderModel",
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    options: StepOptions,
    axis: str | None = None,
    gather: Gather = lambda params, frozen, dtype: (params, frozen),
) -> Step:
    """The step of a model's graph; its arrays are not looked at again.

    The loss is the mean over the tokens of the whole batch, however it is cut: into `options.accumulation` parts, over
    a mesh, or over the devices of a mapped `axis`, whose sums are added up. Dropout's keys depend on the state's key,
    the step and the part, and on the device of a mapped axis. `gather`: makes of parameters, trained and frozen, those
    that are computed with, where each device keeps a share of them only. A step whose loss or gradient is not finite
    leaves all but `step` and `skipped` as it was.
    """
    model.train()
    graphdef = nnx.graphdef(model)
    nest = nested(model)

    def loss(params: Arrays, frozen: Arrays, batch: DeviceBatch, key: jax.Array) -> tuple[jax.Array, Sums]:
        params, frozen = gather(params, frozen, model.dtype)
        bound = nnx.merge(graphdef, nest(params | frozen))
        output = bound(
            batch.pixel_values,
            labels=batch.labels,
            rngs=nnx.Rngs(dropout=key),
            interpolate_pos_encoding=options.interpolate_pos_encoding,
        )
        sums = cross_entropy_sums(
            output.logits, batch.labels, batch.weight, smoothing=options.smoothing, z_loss=options.z_loss
        )
        return sums.loss, sums

    def gradients(state: TrainState, batch: DeviceBatch) -> tuple[Arrays, Sums]:
        """Of the sum of losses."""
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        differentiate = jax.grad(loss, has_aux=True)
        if options.accumulation == 1:
            return differentiate(state.params, state.frozen, batch, jax.random.fold_in(key, 0))

        def part(total: Any, numbered: tuple[jax.Array, DeviceBatch]) -> tuple[Any, None]:
            index, rows = numbered
            found = differentiate(state.params, state.frozen, rows, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, found), None

        numbered = jnp.arange(options.accumulation), jax.tree.map(cut, batch)
        zeros = jax.tree.map(jnp.zeros_like, state.params), Sums(*[jnp.zeros(())] * 3)
        return jax.lax.scan(part, zeros, numbered)[0]

    def cut(rows: jax.Array) -> jax.Array:
        """(B, ...) to (parts, B / parts, ...): each part takes its rows from all over the batch, so that none has to
        leave its device."""
        return rows.reshape(-1, options.accumulation, *rows.shape[1:]).swapaxes(0, 1)

    def update(kept: Learned, grads: Arrays) -> Learned:
        params, average, moments = kept
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        if options.decay is not None:
            average = optax.incremental_update(params, average, 1 - options.decay)
        return params, average, moments

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        grads, sums = gradients(state, batch)
        rows = jnp.sum(batch.weight > 0)
        if axis is not None:
            grads, sums, rows = jax.lax.psum((grads, sums, rows), axis)
        tokens = jnp.where(sums.tokens > 0, sums.tokens, 1)
        grads = jax.tree.map(lambda grad: grad / tokens, grads)
        mean, grad_norm = sums.loss / tokens, optax.tree.norm(grads)
        finite = jnp.isfinite(mean) & jnp.isfinite(grad_norm)
        kept = state.params, state.average, state.optimizer
        params, average, moments = if_finite(finite, update, kept, grads)
        after = dataclasses.replace(
            state,
            step=state.step + 1,
            skipped=state.skipped + (1 - finite.astype(jnp.int32)),
            params=params,
            average=average,
            optimizer=moments,
        )
        learning_rate = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
        return after, Metrics(mean, sums.correct / tokens, sums.tokens, rows, grad_norm, learning_rate, finite)

    return step


def if_finite(finite: jax.Array, update: Callable[[Learned, Arrays], Learned], kept: Learned, grads: Arrays) -> Learned:
    """update(kept, grads) or, where `finite` does not hold, what is kept.

    On CPUs in a branch: XLA writes over donated arrays there, and copies the moments where `where` chooses.
    """

    def branch(kept: Learned, grads: Arrays) -> Learned:
        return jax.lax.cond(finite, update, lambda kept, grads: kept, kept, grads)

    def choice(kept: Learned, grads: Arrays) -> Learned:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(kept, grads), kept)

    return platforms.choose(kept, grads, cpu=branch, default=choice)
