"""Greedy decoding as one compiled loop over preallocated caches."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ved_core.generation import DecodingPlan
from ved_flax.layers.cache import Cache


class DecodeStep(Protocol):
    """Scores (B, V) of what follows ids (B,), and the cache with them in it."""

    def __call__(self, ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]: ...


class Generated(NamedTuple):
    """`ids_BL` int32, padded to the longest length allowed; `log_probs_BL` float32, of each token, 0 at the start token
    and at padding; `length`: int32 scalar, how many columns of ids were decoded."""

    ids_BL: jax.Array
    log_probs_BL: jax.Array
    length: jax.Array


class _State(NamedTuple):
    ids_BL: jax.Array
    log_probs_BL: jax.Array
    finished_B: jax.Array
    position: jax.Array
    """Of the last token in ids_BL."""
    cache: Cache


def force(scores_BV: jax.Array, position: jax.Array, plan: DecodingPlan) -> jax.Array:
    """Scores of the token at `position` (the start token's is 0), with no choice left where the plan forces one."""
    if plan.forced_bos is not None:
        scores_BV = jnp.where(position == 1, only(scores_BV, (plan.forced_bos,)), scores_BV)
    if plan.forced_eos:
        scores_BV = jnp.where(position == plan.max_length - 1, only(scores_BV, plan.forced_eos), scores_BV)
    return scores_BV


def only(scores_BV: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """0 for `ids`, minus infinity for all others."""
    return jnp.full_like(scores_BV, -jnp.inf).at[:, jnp.array(ids)].set(0)


def greedy(step: DecodeStep, cache: Cache, plan: DecodingPlan) -> Generated:
    """The likeliest token at each step, until every row has ended or is `plan.max_length` long."""
    batch = cache.mask_BL.shape[0]
    ids = jnp.full((batch, plan.max_length), plan.pad, jnp.int32).at[:, 0].set(plan.start)
    ends = jnp.array(plan.eos, jnp.int32)

    def running(state: _State) -> jax.Array:
        return (state.position < plan.max_length - 1) & ~jnp.all(state.finished_B)

    def advance(state: _State) -> _State:
        last_B = jax.lax.dynamic_index_in_dim(state.ids_BL, state.position, axis=1, keepdims=False)
        scores_BV, cache = step(last_B, state.cache)
        scores_BV = force(scores_BV, state.position + 1, plan)
        chosen_B = jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
        log_prob_B = jnp.max(scores_BV, axis=-1) - jax.nn.logsumexp(scores_BV, axis=-1)
        ids_B = jnp.where(state.finished_B, plan.pad, chosen_B)
        position = state.position + 1
        return _State(
            state.ids_BL.at[:, position].set(ids_B),
            state.log_probs_BL.at[:, position].set(jnp.where(state.finished_B, 0, log_prob_B)),
            # Only generated tokens end a row: the start token is often the end token too.
            state.finished_B | jnp.isin(ids_B, ends),
            position,
            cache,
        )

    state = _State(ids, jnp.zeros(ids.shape, jnp.float32), jnp.zeros(batch, bool), jnp.int32(0), cache)
    state = jax.lax.while_loop(running, advance, state)
    return Generated(state.ids_BL, state.log_probs_BL, state.position + 1)


def lengths(ids_BL: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    """Generated tokens of each row (B,), its end token included and the start token not."""
    ended = jnp.isin(ids_BL[:, 1:], jnp.array(eos, jnp.int32))
    return jnp.where(ended.any(axis=1), ended.argmax(axis=1) + 1, ended.shape[1])
