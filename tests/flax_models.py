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
from ved_flax import FlaxVisionEncoderDecoderModel, state


def perturbed(encoder: str, decoder: str, seed: int = 0, **fields: Any) -> FlaxVisionEncoderDecoderModel:
    """A tiny model of which every parameter is random: what is left out or swapped shows in its outputs."""
    config = VisionEncoderDecoderConfig.from_dict(model_config(encoder, decoder) | fields)
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config))
    rng = np.random.default_rng(seed)
    values = {
        name: 0.2 * rng.standard_normal(shape) + name.endswith("scale") for name, shape in state.shapes(model).items()
    }
    return state.fill(model, values, jnp.dtype(jnp.float32))


forward = nnx.jit(FlaxVisionEncoderDecoderModel.__call__, static_argnames=("output_attentions", "output_hidden_states"))
"""A model's whole call, compiled: operation by operation takes much longer for the first time."""
decode = nnx.jit(FlaxVisionEncoderDecoderModel.decode)
encode = nnx.jit(
    FlaxVisionEncoderDecoderModel.encode,
    static_argnames=("interpolate_pos_encoding", "output_attentions", "output_hidden_states"),
)


def stored_gradients(model: FlaxVisionEncoderDecoderModel, pixel_values: Any, labels: Any) -> dict[str, np.ndarray]:
    """The loss's gradients under their stored names."""
    graphdef, parameters = nnx.split(model)

    def loss(parameters: Any) -> jax.Array:
        value = nnx.merge(graphdef, parameters)(pixel_values, labels=labels).loss
        assert value is not None
        return value

    gradients = jax.jit(jax.grad(loss))(parameters)
    flat = {".".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(gradients)}
    return to_stored(Weights(flat, {}), model_table(model.config), "flax")
