"""Labels to decoder inputs and to the loss."""

import jax
import jax.numpy as jnp

IGNORED = -100
"""Label of positions that the loss leaves out."""


def shift_right(labels_BT: jax.Array, start: int, pad: int) -> jax.Array:
    """Decoder inputs for labels: one token later, behind the start token; ignored labels become padding."""
    starts = jnp.full((labels_BT.shape[0], 1), start, labels_BT.dtype)
    shifted = jnp.concatenate([starts, labels_BT[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED, pad, shifted)


def cross_entropy(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Mean negative log-likelihood over the labels that are not IGNORED, float32; 0 where all are."""
    counted = labels_BT != IGNORED
    log_probs = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probs, jnp.where(counted, labels_BT, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * counted) / jnp.maximum(jnp.sum(counted), 1)
