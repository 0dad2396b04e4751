"""What changes the scores of the next token: pure functions, by the name of the option that asks for them.

Each takes scores (R, V) float32 of R hypotheses, where the step stands, and the option's numbers. They follow
transformers' processors, in transformers' order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ved_core.generation.plan import Numbers, Plan


class Context(NamedTuple):
    """Where a step stands; padding of the prompt is on the left."""

    ids_RL: jax.Array
    """Tokens so far."""
    columns: jax.Array
    """Scalar, how many columns of `ids_RL` are filled."""
    own_R: jax.Array
    """Tokens of each row's own, padding left out."""
    new: jax.Array
    """Scalar, how many of them were generated."""
    limit_R: jax.Array
    """How long each row may become."""
    row_R: jax.Array
    """The image's place in the batch."""
    done_R: jax.Array
    """Rows that have ended, whose scores nobody reads."""
    numbers: Numbers
    plan: Plan

    def recent(self, count: int) -> tuple[jax.Array, jax.Array]:
        """The last `count` ids (R, count), and which of them are a row's own."""
        back = jnp.arange(count, 0, -1)
        ids = jnp.take(self.ids_RL, jnp.maximum(self.columns - back, 0), axis=1)
        return ids, back <= self.own_R[:, None]


Processor = Callable[[jax.Array, Context, Any], jax.Array]


def process(scores_RV: jax.Array, context: Context) -> jax.Array:
    """The scores after every processor of the plan."""
    for name in context.plan.processors:
        scores_RV = PROCESSORS[name](scores_RV, context, context.numbers.get(name))
    return scores_RV


def forced(context: Context) -> jax.Array:
    """Rows (R,) whose next token is not the model's to choose."""
    forced_R = jnp.zeros(context.own_R.shape, bool)
    if "forced_bos_token_id" in context.plan.processors:
        forced_R |= context.own_R == 1
    if "forced_eos_token_id" in context.plan.processors:
        forced_R |= context.own_R == context.limit_R - 1
    return forced_R


# Changes of single tokens ---------------------------------------------------------------------------------------------


def sequence_bias(scores_RV: jax.Array, context: Context, biases: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Add to the score of a sequence's last token where the tokens before it are the last ones."""
    ids_SW, bias_S = biases
    prefix = ids_SW[:, :-1]
    recent, own = context.recent(prefix.shape[1])
    same = (recent[:, None] == prefix) & own[:, None] | (prefix < 0)
    return scores_RV.at[:, ids_SW[:, -1]].add(jnp.where(same.all(axis=-1), bias_S, 0))


def repetition_penalty(scores_RV: jax.Array, context: Context, penalty: jax.Array) -> jax.Array:
    """Make tokens that were there before less likely (arXiv:1909.05858)."""
    columns = jnp.arange(context.ids_RL.shape[1])
    own = (columns >= (context.columns - context.own_R)[:, None]) & (columns < context.columns)
    seen = _marked(scores_RV, context.ids_RL, own)
    return jnp.where(seen, jnp.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty), scores_RV)


def no_repeat_ngram_size(scores_RV: jax.Array, context: Context, _: None) -> jax.Array:
    """Forbid to complete a run of n tokens that was there before."""
    size = context.plan.ngram
    ids = context.ids_RL
    windows = ids.shape[1] - size + 1
    if windows < 1:
        return scores_RV
    recent, own = context.recent(size - 1)
    first = jnp.arange(windows)
    same = (first >= (context.columns - context.own_R)[:, None]) & (first + size <= context.columns)
    same &= own.all(axis=1)[:, None]
    for place in range(size - 1):
        same &= ids[:, place : place + windows] == recent[:, place, None]
    return jnp.where(_marked(scores_RV, ids[:, size - 1 :], same), -jnp.inf, scores_RV)


def no_end_before(own_or_new: Callable[[Context], jax.Array]) -> Processor:
    """Forbid the end tokens while a count is below the option's number."""

    def processor(scores_RV: jax.Array, context: Context, least: jax.Array) -> jax.Array:
        without = scores_RV.at[:, context.numbers["eos"]].set(-jnp.inf)
        return jnp.where((own_or_new(context) < least)[..., None], without, scores_RV)

    return processor


def suppress_tokens(scores_RV: jax.Array, context: Context, ids: jax.Array) -> jax.Array:
    """Forbid tokens."""
    return scores_RV.at[:, ids].set(-jnp.inf)


def begin_suppress_tokens(scores_RV: jax.Array, context: Context, values: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Forbid tokens as the first that is generated, or behind a forced one."""
    ids, begin = values
    return jnp.where(context.new == begin, suppress_tokens(scores_RV, context, ids), scores_RV)


def forced_bos_token_id(scores_RV: jax.Array, context: Context, ids: jax.Array) -> jax.Array:
    """One token behind the start token."""
    return jnp.where((context.own_R == 1)[:, None], only(scores_RV, ids), scores_RV)


def forced_eos_token_id(scores_RV: jax.Array, context: Context, ids: jax.Array) -> jax.Array:
    """One of these tokens at a row's last place."""
    return jnp.where((context.own_R == context.limit_R - 1)[:, None], only(scores_RV, ids), scores_RV)


def only(scores_RV: jax.Array, ids: jax.Array) -> jax.Array:
    """0 for `ids`, minus infinity for all others."""
    return jnp.full_like(scores_RV, -jnp.inf).at[:, ids].set(0)


def _marked(scores_RV: jax.Array, ids_RL: jax.Array, mask_RL: jax.Array) -> jax.Array:
    """Which tokens (R, V) stand in `ids_RL` where the mask says so."""
    rows = jnp.arange(ids_RL.shape[0])[:, None]
    ids = jnp.where(mask_RL, ids_RL, scores_RV.shape[1])
    return jnp.zeros(scores_RV.shape, bool).at[rows, ids].set(True, mode="drop")


# Functions of the caller's --------------------------------------------------------------------------------------------


def prefix_allowed_tokens_fn(scores_RV: jax.Array, context: Context, _: None) -> jax.Array:
    """Only what the caller's function allows behind a row's tokens; it is called on the host, at every step."""
    assert context.plan.allowed is not None
    function, streams = context.plan.allowed, context.plan.streams

    def host(*arrays: Any) -> np.ndarray:
        ids_RL, columns, own_R, row_R, done_R = map(np.asarray, arrays)
        mask = np.zeros((len(ids_RL), scores_RV.shape[1]), bool)
        for place in range(len(mask)):
            if done_R[place]:
                mask[place] = True
                continue
            row = int(row_R[place])
            allowed = function(row, ids_RL[place, columns - own_R[place] : columns])
            if len(allowed) == 0:
                raise ValueError(f"prefix_allowed_tokens_fn allows no token in row {row}")
            mask[place, np.asarray(allowed)] = True
        return mask

    arguments = (context.ids_RL, context.columns, context.own_R, context.row_R, context.done_R)
    allowed_RV = jax.pure_callback(host, jax.ShapeDtypeStruct(scores_RV.shape, bool), *arguments)
    left = jnp.where(allowed_RV, scores_RV, -jnp.inf)
    # Where all that is allowed was forbidden before, in every hypothesis of an image, what is allowed wins.
    none = (left.max(axis=1) == -jnp.inf).reshape(-1, streams).all(axis=1).repeat(streams)
    return jnp.where(none[:, None], jnp.where(allowed_RV, 0, -jnp.inf), left)


def logits_processor(scores_RV: jax.Array, context: Context, _: None) -> jax.Array:
    """The caller's functions of ids (R, L), scores (R, V) and the number of columns of ids that are filled."""
    for function in context.plan.custom:
        scores_RV = function(context.ids_RL, scores_RV, context.columns)
    return scores_RV


# Sampling -------------------------------------------------------------------------------------------------------------


def temperature(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """Flatten (above 1) or sharpen (below 1)."""
    return scores_RV / value


def top_k(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """The k best (arXiv:1805.04833)."""
    best = jax.lax.top_k(scores_RV, context.plan.most_top_k)[0]
    return _at_least(scores_RV, jnp.take(best, value - 1, axis=1)[:, None])


def top_p(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """The best that together have a probability of at least p (arXiv:1904.09751)."""
    ascending = jnp.sort(scores_RV, axis=1)
    removed = jnp.cumsum(jax.nn.softmax(ascending, axis=1), axis=1) <= 1 - value
    removed = removed.at[:, -context.plan.kept :].set(False)
    least = jnp.take_along_axis(ascending, removed.sum(axis=1, keepdims=True), axis=1)
    return _at_least(scores_RV, least)


def min_p(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """Those that have at least this share of the best one's probability (arXiv:2407.01082)."""
    probs = jax.nn.softmax(scores_RV, axis=1)
    return _filtered(scores_RV, probs >= value * probs.max(axis=1, keepdims=True), context)


def typical_p(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """Those whose information is nearest to the expected one, up to a probability of p (arXiv:2202.00666)."""
    log_probs = jax.nn.log_softmax(scores_RV, axis=1)
    distance = jnp.abs(-log_probs - _entropy(log_probs))
    order = jnp.argsort(distance, axis=1)
    nearest = jnp.take_along_axis(distance, order, axis=1)
    mass = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores_RV, order, axis=1), axis=1), axis=1)
    last = jnp.minimum((mass < value).sum(axis=1, keepdims=True), scores_RV.shape[1] - 1)
    last = jnp.maximum(last, context.plan.kept - 1)
    return jnp.where(distance <= jnp.take_along_axis(nearest, last, axis=1), scores_RV, -jnp.inf)


def epsilon_cutoff(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """Those that have at least this probability (arXiv:2210.15191)."""
    return _filtered(scores_RV, jax.nn.softmax(scores_RV, axis=1) >= value, context)


def eta_cutoff(scores_RV: jax.Array, context: Context, value: jax.Array) -> jax.Array:
    """As epsilon_cutoff, with a bound that falls as the distribution flattens (arXiv:2210.15191)."""
    log_probs = jax.nn.log_softmax(scores_RV, axis=1)
    bound = jnp.minimum(value, jnp.sqrt(value) * jnp.exp(-_entropy(log_probs)))
    return _filtered(scores_RV, jnp.exp(log_probs) >= bound, context)


def renormalize_logits(scores_RV: jax.Array, context: Context, _: None) -> jax.Array:
    """Log-probabilities again."""
    return jax.nn.log_softmax(scores_RV, axis=1)


def _entropy(log_probs_RV: jax.Array) -> jax.Array:
    """(R, 1)."""
    probs = jnp.exp(log_probs_RV)
    return -jnp.where(probs > 0, log_probs_RV * probs, 0).sum(axis=1, keepdims=True)


def _at_least(scores_RV: jax.Array, least_R1: jax.Array) -> jax.Array:
    return jnp.where(scores_RV < least_R1, -jnp.inf, scores_RV)


def _filtered(scores_RV: jax.Array, keep_RV: jax.Array, context: Context) -> jax.Array:
    """Scores that are to be kept, and the few best in any case."""
    best = jax.lax.top_k(scores_RV, context.plan.kept)[0][:, -1:]
    return jnp.where(keep_RV | (scores_RV >= best), scores_RV, -jnp.inf)


PROCESSORS: dict[str, Processor] = {
    "sequence_bias": sequence_bias,
    "repetition_penalty": repetition_penalty,
    "no_repeat_ngram_size": no_repeat_ngram_size,
    "bad_words_ids": sequence_bias,
    "min_length": no_end_before(lambda context: context.own_R),
    "min_new_tokens": no_end_before(lambda context: context.new[None]),
    "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
    "forced_bos_token_id": forced_bos_token_id,
    "forced_eos_token_id": forced_eos_token_id,
    "suppress_tokens": suppress_tokens,
    "begin_suppress_tokens": begin_suppress_tokens,
    "logits_processor": logits_processor,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon_cutoff,
    "eta_cutoff": eta_cutoff,
    "renormalize_logits": renormalize_logits,
}
