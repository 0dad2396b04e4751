"""The state of a decoding loop: one typed value. K streams (hypotheses) run for each of B images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_flax.layers.cache import Cache


class Sequences(NamedTuple):
    """What is kept of hypotheses: `ids_BKL` int32; `log_probs_BKS` float32, the model's of each new token, 0 behind the
    end; `path_BKS` int32, the stream that each new token was chosen in, -1 behind the end."""

    ids_BKL: jax.Array
    log_probs_BKS: jax.Array
    path_BKS: jax.Array

    def take(self, places_BM: jax.Array) -> "Sequences":
        """Those at places (B, M)."""
        return Sequences(*(jnp.take_along_axis(array, places_BM[..., None], axis=1) for array in self))

    def extended(self, column: jax.Array, new: jax.Array, token_BK: jax.Array, log_prob_BK: jax.Array) -> "Sequences":
        """With one more token each, at `column` of the ids, the one of number `new` that was generated."""
        return self._replace(
            ids_BKL=self.ids_BKL.at[:, :, column].set(token_BK),
            log_probs_BKS=self.log_probs_BKS.at[:, :, new].set(log_prob_BK),
        )


class Finished(NamedTuple):
    """Beam search's best hypotheses that ended: `scores_BK` and which places are taken, best first."""

    sequences: Sequences
    scores_BK: jax.Array
    taken_BK: jax.Array


class Records(NamedTuple):
    """What was asked for of every step: (S, B * K, V) float32, or None."""

    scores: jax.Array | None
    logits: jax.Array | None


class State(NamedTuple):
    """Between two steps."""

    new: jax.Array
    """int32 scalar, tokens generated so far."""
    sequences: Sequences
    done_BK: jax.Array
    """Streams that have ended; in beam search, all of an image together."""
    visible_BKC: jax.Array
    """Slots of the cache that each stream may attend to: the prompt's, and those of the tokens that it came by."""
    stop_BK: jax.Array
    """The stop strings' automaton."""
    cache: Cache
    records: Records
    running_BK: jax.Array
    """Beam search's sum of the scores of each running hypothesis."""
    finished: Finished | None
    """Beam search's results so far."""


WORST = -1e9
"""Below any hypothesis that is one."""


def initial(cache: Cache, rows: Rows, numbers: Numbers, plan: Plan, vocabulary: int) -> State:
    """Before the first step; the cache holds all of the prompt but its last token."""
    batch = rows.prompt_BT.shape[0]
    shape = (batch, plan.streams)
    ids_BKL = jnp.full((*shape, plan.length), numbers["pad"], jnp.int32)
    ids_BKL = ids_BKL.at[:, :, : plan.prompt].set(jnp.asarray(rows.prompt_BT)[:, None])
    new_tokens = (*shape, plan.steps)
    sequences = Sequences(ids_BKL, jnp.zeros(new_tokens, jnp.float32), jnp.full(new_tokens, -1, jnp.int32))
    visible = jnp.zeros((*shape, plan.slots), bool)
    visible = visible.at[:, :, : plan.prompt - 1].set(jnp.asarray(rows.mask_BT)[:, None, :-1])
    # Only the first hypothesis counts at the first step: the others are the same.
    running = jnp.where(jnp.arange(plan.streams) == 0, 0.0, WORST) * jnp.ones(shape)
    finished = Finished(sequences, jnp.full(shape, WORST), jnp.zeros(shape, bool)) if plan.beams else None
    record = jnp.zeros((plan.steps, batch * plan.streams, vocabulary))
    return State(
        jnp.int32(0),
        sequences,
        jnp.broadcast_to(~jnp.asarray(rows.live_B)[:, None], shape),
        visible,
        jnp.broadcast_to(jnp.asarray(rows.stop_B)[:, None], shape),
        cache,
        Records(record if plan.scores else None, record if plan.logits else None),
        running,
        finished,
    )
