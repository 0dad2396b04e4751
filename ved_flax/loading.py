"""From a checkpoint folder to a model and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from conversion import checkpoint
from conversion.tables import model_table
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.model import given_or_read
from ved_core.generation.config import GenerationConfig
from ved_core.hub import resolve
from ved_flax import state

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel


def load(
    cls: type["FlaxVisionEncoderDecoderModel"],
    name_or_path: str | Path,
    *,
    config: VisionEncoderDecoderConfig | Mapping[str, Any] | None,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    attn_implementation: str,
    revision: str | None,
    subfolder: str | None,
) -> "FlaxVisionEncoderDecoderModel":
    """`FlaxVisionEncoderDecoderModel.from_pretrained`, which says the rest."""
    folder = resolve(name_or_path, revision=revision, subfolder=subfolder)
    config = given_or_read(config, folder)

    def build() -> "FlaxVisionEncoderDecoderModel":
        return cls(config, dtype=dtype, param_dtype=param_dtype, attn_implementation=attn_implementation)

    model = state.abstract(build)
    weights = checkpoint.load(folder, model_table(config), state.shapes(model), "flax")
    state.fill(model, weights.parameters, param_dtype)
    model.carry(weights.carried)
    model.generation_config = GenerationConfig.from_folder(folder)
    return model


def save(model: "FlaxVisionEncoderDecoderModel", folder: Path) -> None:
    """`FlaxVisionEncoderDecoderModel.save_pretrained`, which says the rest."""
    save_arrays(model, folder, state.arrays(model))


def save_arrays(model: "FlaxVisionEncoderDecoderModel", folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`save` with other parameters than those that lie in the model, under the same dotted names."""
    weights = checkpoint.Weights(dict(arrays), model.carried)
    checkpoint.save_model(folder, weights, model.config, model.generation_config, "flax")
