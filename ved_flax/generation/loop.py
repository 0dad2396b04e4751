"""The loop: feed the last tokens, process the scores, let the strategy choose, until every row has ended."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_flax.generation.processors import Context, forced, process
from ved_flax.generation.state import Records, State
from ved_flax.generation.strategies import Step, beams, independent
from ved_flax.layers.cache import Cache


class DecodeStep(Protocol):
    """Scores (B, K, V) float32 of what follows ids (B, K), one token of each stream, all of a row at one position
    (B, 1); and the cache with them in it. `visible_BKC`: the slots of the cache that each may attend to."""

    def __call__(
        self, ids_BK: jax.Array, cache: Cache, visible_BKC: jax.Array, position_B1: jax.Array
    ) -> tuple[jax.Array, Cache]: ...


class Generated(NamedTuple):
    """Rows are `plan.returned` for each image. `ids_RL` int32, padded; `log_probs_RS` float32, the model's, of each new
    token, 0 behind the end and where it had no choice; `path_RS` int32, the stream that each was chosen in, -1 behind
    the end; `scores_R`: of beam search's sequences; `records`: of every step; `steps`: int32 scalar, how many there
    were."""

    ids_RL: jax.Array
    log_probs_RS: jax.Array
    path_RS: jax.Array
    scores_R: jax.Array | None
    records: Records
    steps: jax.Array


def running(state: State, plan: Plan) -> jax.Array:
    """Whether there is anything left to do."""
    return (state.new < plan.steps) & ~jnp.all(state.done_BK)


def advance(
    step: DecodeStep, state: State, first_B: jax.Array, rows: Rows, numbers: Numbers, plan: Plan, until: jax.Array | int
) -> State:
    """Steps until `until` tokens were generated or all have ended. `first_B`: the position of the prompt's last
    token."""

    def body(state: State) -> State:
        new = state.new
        column = plan.prompt + new
        own_B = jnp.asarray(rows.mask_BT).sum(axis=1) + new
        ids_BKL = state.sequences.ids_BKL
        last = jax.lax.dynamic_index_in_dim(ids_BKL, column - 1, axis=2, keepdims=False)
        slots = plan.prompt - 1 + new * plan.streams + jnp.arange(plan.streams)
        visible = state.visible_BKC.at[:, jnp.arange(plan.streams), slots].set(True)
        position = jnp.where(new == 0, first_B, own_B - 1)
        logits_BKV, cache = step(last, state.cache, visible, position[:, None])
        log_probs_BKV = jax.nn.log_softmax(logits_BKV, axis=-1)

        batch, streams, vocabulary = logits_BKV.shape
        context = Context(
            ids_BKL.reshape(batch * streams, -1),
            column,
            own_B.repeat(streams),
            new,
            jnp.asarray(rows.limit_B).repeat(streams),
            jnp.asarray(rows.row_B).repeat(streams),
            state.done_BK.reshape(-1),
            numbers,
            plan,
        )
        scores = process((log_probs_BKV if plan.beams else logits_BKV).reshape(-1, vocabulary), context)
        records = Records(
            *(
                None if record is None else record.at[new].set(values.reshape(-1, vocabulary))
                for record, values in zip(state.records, (scores, logits_BKV), strict=True)
            )
        )
        choice = Step(
            scores.reshape(logits_BKV.shape),
            log_probs_BKV,
            column,
            own_B,
            forced(context).reshape(batch, streams),
            rows,
            numbers,
            plan,
        )
        state = state._replace(cache=cache, visible_BKC=visible, records=records)
        return beams(state, choice) if plan.beams else independent(state, choice)

    return jax.lax.while_loop(lambda state: running(state, plan) & (state.new < until), body, state)


def result(state: State, plan: Plan) -> Generated:
    """What comes back of a loop that has ended."""
    sequences = state.sequences if state.finished is None else state.finished.sequences
    scores = None if state.finished is None else state.finished.scores_BK[:, : plan.returned].reshape(-1)
    ids, log_probs, path = (x[:, : plan.returned].reshape(-1, x.shape[-1]) for x in sequences)
    return Generated(ids, log_probs, path, scores, state.records, state.new)
