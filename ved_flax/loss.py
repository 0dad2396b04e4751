"""Labels to decoder inputs and to the loss."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ved_core.inputs import IGNORED
from ved_flax import platforms
from ved_flax.layers.products import row_sums


def shift_right(labels_BT: jax.Array, start: int, pad: int) -> jax.Array:
    """Decoder inputs for labels: one token later, behind the start token; ignored labels become padding."""
    starts = jnp.full((labels_BT.shape[0], 1), start, labels_BT.dtype)
    shifted = jnp.concatenate([starts, labels_BT[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED, pad, shifted)


def places(labels_BT: jax.Array, logits_BTV: jax.Array) -> jax.Array:
    """Where each label's score is, 0 where it is ignored. A label that is no token lies behind the last: its loss is
    NaN, where a negative one would count from the end."""
    labels_BT = jnp.where(labels_BT == IGNORED, 0, labels_BT)
    return jnp.where(labels_BT < 0, logits_BTV.shape[-1], labels_BT)


def cross_entropy(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Mean negative log-likelihood over the labels that are not IGNORED, float32; 0 where all are."""
    counted = labels_BT != IGNORED
    log_probs = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probs, places(labels_BT, log_probs)[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * counted) / jnp.maximum(jnp.sum(counted), 1)


def log_sum_exp(scores_BTV: jax.Array) -> jax.Array:
    """Log of the sum of exponentials of a token's scores (B, T), float32, all of them finite."""
    return platforms.choose(scores_BTV, tpu=_log_row_sums, default=partial(jax.nn.logsumexp, axis=-1))


def _log_row_sums(scores_BTV: jax.Array) -> jax.Array:
    largest_BT1 = jax.lax.stop_gradient(scores_BTV).max(axis=-1, keepdims=True)
    return jnp.log(row_sums(jnp.exp(scores_BTV - largest_BT1))) + largest_BT1[..., 0]


class Sums(NamedTuple):
    """What a part of a batch adds to its loss, each a float32 number: parts of any size add up to the whole."""

    loss: jax.Array
    """Weighted losses of all tokens that count."""
    correct: jax.Array
    """Weight of the tokens whose label has the highest score."""
    tokens: jax.Array
    """Weight of the tokens that count."""


def cross_entropy_sums(
    logits_BTV: jax.Array, labels_BT: jax.Array, weight_B: jax.Array, *, smoothing: float = 0.0, z_loss: float = 0.0
) -> Sums:
    """`cross_entropy` before it is divided by the number of tokens, each row's tokens weighted.

    `smoothing`: share of the target that is spread over the vocabulary (arXiv:1512.00567, 7); `z_loss`: weight of the
    squared log of the scores' sum of exponentials (arXiv:2204.02311, 5).
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    counted_BT = (labels_BT != IGNORED) * weight_B.astype(jnp.float32)[:, None]
    labels_BT = places(labels_BT, logits_BTV)
    log_sum_BT = log_sum_exp(logits_BTV)
    target_BT = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)[..., 0]
    losses_BT = log_sum_BT - target_BT
    if smoothing:
        losses_BT = (1 - smoothing) * losses_BT + smoothing * (log_sum_BT - logits_BTV.mean(axis=-1))
    if z_loss:
        losses_BT = losses_BT + z_loss * log_sum_BT**2
    # The maximum comes with the scores, and is needed for their sum; argmax would read them once more.
    correct_BT = target_BT >= jax.lax.stop_gradient(logits_BTV).max(axis=-1)
    # A row that does not count adds nothing even where its loss is not finite.
    losses_BT = jnp.where(counted_BT > 0, losses_BT * counted_BT, 0)
    return Sums(losses_BT.sum(), (correct_BT * counted_BT).sum(), counted_BT.sum())
