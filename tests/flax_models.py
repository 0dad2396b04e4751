"""Flax models for tests, and their parameters and gradients under stored names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.checkpoint import Weights, to_stored
from conversion.tables import model_table
from tests.cases import model_config
from ved_core.configs import VisionEncoderDecoderConfig
from ved_flax import FlaxVisionEncoderDecoderModel


def perturbed(encoder: str, decoder: str, seed: int = 0, **fields: Any) -> FlaxVisionEncoderDecoderModel:
    """A tiny model of which every parameter is random: what is left out or swapped shows in its outputs."""
    config = VisionEncoderDecoderConfig.from_dict(model_config(encoder, decoder) | fields)
    model = FlaxVisionEncoderDecoderModel(config)
    rng = np.random.default_rng(seed)
    state = nnx.state(model)
    noise = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.standard_normal(x.shape), x.dtype), state)
    nnx.update(model, noise)
    return model


def stored_gradients(model: FlaxVisionEncoderDecoderModel, pixel_values: Any, labels: Any) -> dict[str, np.ndarray]:
    """The loss's gradients under their stored names."""
    graphdef, state = nnx.split(model)

    def loss(state: Any) -> jax.Array:
        value = nnx.merge(graphdef, state)(pixel_values, labels=labels).loss
        assert value is not None
        return value

    gradients = jax.jit(jax.grad(loss))(state)
    flat = {".".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(gradients)}
    return to_stored(Weights(flat, {}), model_table(model.config), "flax")
