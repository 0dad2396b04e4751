"""Which tokens are chosen: the likeliest, drawn ones, or those of the best hypotheses (beam search)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_flax import platforms
from ved_flax.generation.state import WORST, Finished, State


class Step(NamedTuple):
    """What a strategy reads: the processed scores, the model's log-probabilities, both (B, K, V); `column`: of the ids,
    where the new token goes; `own_B`: tokens of each row so far."""

    scores_BKV: jax.Array
    log_probs_BKV: jax.Array
    column: jax.Array
    own_B: jax.Array
    forced_BK: jax.Array
    rows: Rows
    numbers: Numbers
    plan: Plan

    def log_probs(self, stream_BM: jax.Array, token_BM: jax.Array) -> jax.Array:
        """The model's, of tokens in streams; 0 where it had no choice."""
        picked_BM = pick(self.log_probs_BKV, stream_BM, token_BM)
        return jnp.where(jnp.take_along_axis(self.forced_BK, stream_BM, axis=1), 0, picked_BM)

    def ends(self, token_BM: jax.Array, state_BM: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which tokens end their sequences, and the stop strings' automaton behind them."""
        ends = jnp.isin(token_BM, self.numbers["eos"]) | (self.own_B + 1 >= self.rows.limit_B)[:, None]
        if self.plan.stops:
            ends |= self.numbers["stop_hit"][state_BM, token_BM]
            state_BM = self.numbers["stop_next"][state_BM, token_BM]
        return ends, state_BM


def pick(values_BKV: jax.Array, stream_BM: jax.Array, token_BM: jax.Array) -> jax.Array:
    """Single values (B, M): gathering whole rows first would copy the vocabulary for each."""
    return values_BKV[jnp.arange(values_BKV.shape[0])[:, None], stream_BM, token_BM]


def likeliest(scores_BKV: jax.Array) -> jax.Array:
    """The first of the largest, (B, K) int32."""
    return platforms.choose(
        scores_BKV, cpu=_largest_then_place, default=lambda scores: jnp.argmax(scores, axis=-1).astype(jnp.int32)
    )


def _largest_then_place(scores_BKV: jax.Array) -> jax.Array:
    """On CPUs, XLA takes three times as long for argmax, which carries places along."""
    last = scores_BKV.shape[-1] - 1
    largest = scores_BKV.max(axis=-1, keepdims=True)
    return jnp.where(scores_BKV == largest, jnp.arange(last + 1, dtype=jnp.int32), last).min(axis=-1)


def row_keys(step: Step, new: jax.Array) -> jax.Array:
    """A random key for each row (B,), whatever the rows around it, and however they are spread over devices."""
    rows = jax.vmap(lambda row: jax.random.fold_in(step.numbers["key"], row))(jnp.asarray(step.rows.row_B))
    return jax.vmap(lambda key: jax.random.fold_in(key, new))(rows)


def gumbel(keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise (B, *shape): the largest of log-probabilities with it added is a draw from them, the next largest a draw
    from what is left (arXiv:1903.06059)."""
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys_B)


def independent(state: State, step: Step) -> State:
    """Every stream takes its likeliest token, or draws one."""
    scores = step.scores_BKV
    if step.plan.do_sample:
        scores = scores + gumbel(row_keys(step, state.new), scores.shape[1:])
    token = likeliest(scores)
    stream = jnp.broadcast_to(jnp.arange(step.plan.streams), token.shape)
    ends, stop = step.ends(token, state.stop_BK)
    log_prob = jnp.where(state.done_BK, 0, step.log_probs(stream, token))
    token = jnp.where(state.done_BK, step.numbers["pad"], token)
    sequences = state.sequences.extended(step.column, state.new, token, log_prob)
    path = sequences.path_BKS.at[:, :, state.new].set(jnp.where(state.done_BK, -1, stream))
    return state._replace(
        sequences=sequences._replace(path_BKS=path), done_BK=state.done_BK | ends, stop_BK=stop, new=state.new + 1
    )


def beams(state: State, step: Step) -> State:
    """Beam search as transformers does it: each image's best continuations go on, those that end are kept aside."""
    plan, streams = step.plan, step.plan.streams
    totals = step.scores_BKV + state.running_BK[..., None]
    score, stream, token = _continuations(totals, state, step)
    candidates = state.sequences.take(stream).extended(step.column, state.new, token, step.log_probs(stream, token))
    path = candidates.path_BKS.at[:, :, state.new].set(stream)
    candidates = candidates._replace(path_BKS=path)
    ends, stop = step.ends(token, jnp.take_along_axis(state.stop_BK, stream, axis=1))

    running, going = jax.lax.top_k(score + ends * WORST, streams)
    finished = _finish(state, step, score, ends, candidates)
    going_on = jnp.take_along_axis(stream, going, axis=1)
    new = state.new + 1
    done = state.done_BK[:, :1] | ~_can_improve(finished, running, new, step) | ends.all(axis=1, keepdims=True)
    if plan.early_stopping is True:
        done |= finished.taken_BK.all(axis=1, keepdims=True)
    return state._replace(
        new=new,
        sequences=candidates.take(going),
        done_BK=jnp.broadcast_to(done, state.done_BK.shape),
        visible_BKC=jnp.take_along_axis(state.visible_BKC, going_on[..., None], axis=1),
        stop_BK=jnp.take_along_axis(stop, going, axis=1),
        running_BK=running,
        finished=finished,
    )


def _continuations(totals_BKV: jax.Array, state: State, step: Step) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each image's best continuations, or drawn ones: their scores, streams and tokens (B, M)."""
    plan = step.plan
    ranked = totals_BKV
    if plan.do_sample:
        ranked = totals_BKV + gumbel(row_keys(step, state.new), totals_BKV.shape[1:])
    # The best of every stream first: as exact as the best of all at once, and much less to sort.
    most = min(plan.candidates, ranked.shape[-1])
    best, tokens = jax.lax.top_k(ranked, most)
    _, places = jax.lax.top_k(best.reshape(best.shape[0], -1), plan.candidates)
    stream = places // most
    token = jnp.take_along_axis(tokens.reshape(best.shape[0], -1), places, axis=1)
    return pick(totals_BKV, stream, token), stream, token.astype(jnp.int32)


def _finish(state: State, step: Step, score_BM: jax.Array, ends_BM: jax.Array, candidates: object) -> Finished:
    """The best that ended, now or before. Of the continuations, only the first K may: the others are there so that the
    search can go on."""
    before = state.finished
    assert before is not None
    streams = step.plan.streams
    length = (state.new + 1).astype(jnp.float32)
    ended = ends_BM & (jnp.arange(score_BM.shape[1]) < streams)
    score = score_BM / length ** step.numbers["length_penalty"] + ~ended * WORST
    scores = jnp.concatenate([before.scores_BK, score], axis=1)
    taken = jnp.concatenate([before.taken_BK, ended], axis=1)
    merged = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), before.sequences, candidates)
    best, places = jax.lax.top_k(scores, streams)
    after = Finished(merged.take(places), best, jnp.take_along_axis(taken, places, axis=1))
    # An image that is done keeps what it has.
    done = state.done_BK[:, :1]
    return jax.tree.map(lambda old, new: jnp.where(done if old.ndim == 2 else done[..., None], old, new), before, after)


def _can_improve(finished: Finished, running_BK: jax.Array, new: jax.Array, step: Step) -> jax.Array:
    """Whether an image's best running hypothesis could still come before its worst finished one (B, 1)."""
    penalty = step.numbers["length_penalty"]
    length_B1 = jnp.full((running_BK.shape[0], 1), new, jnp.float32)
    if step.plan.early_stopping == "never":
        longest = (step.rows.limit_B - step.own_B + new - 1)[:, None].astype(jnp.float32)
        length_B1 = jnp.where(penalty > 0, longest, length_B1)
    best = running_BK[:, :1] / length_B1**penalty
    worst = jnp.where(finished.taken_BK, finished.scores_BK.min(axis=1, keepdims=True), WORST)
    return (best > worst).any(axis=1, keepdims=True)
