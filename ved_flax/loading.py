"""From a checkpoint folder to a model and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from conversion import checkpoint
from conversion.tables import model_table
from ved_core.configs import CONFIG_FILE, VisionEncoderDecoderConfig
from ved_core.generation import GENERATION_CONFIG_FILE, GenerationConfig, Options
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
    revision: str | None,
    subfolder: str | None,
) -> "FlaxVisionEncoderDecoderModel":
    """`FlaxVisionEncoderDecoderModel.from_pretrained`, which says the rest."""
    folder = resolve(name_or_path, revision=revision, subfolder=subfolder)
    if config is None:
        config = VisionEncoderDecoderConfig.from_pretrained(folder)
    elif not isinstance(config, VisionEncoderDecoderConfig):
        config = VisionEncoderDecoderConfig.from_dict(config)
    model = state.abstract(lambda: cls(config, dtype=dtype, param_dtype=param_dtype))
    weights = checkpoint.load(folder, model_table(config), state.shapes(model), "flax")
    state.fill(model, weights.parameters, param_dtype)
    model.attached.carried = weights.carried
    model.generation_config = GenerationConfig.from_folder(folder)
    return model


def save(model: "FlaxVisionEncoderDecoderModel", folder: Path) -> None:
    """`FlaxVisionEncoderDecoderModel.save_pretrained`, which says the rest."""
    weights = checkpoint.Weights(state.arrays(model), model.carried)
    tensors = checkpoint.to_stored(weights, model_table(model.config), "flax")
    config = model.config.copy()
    if not config.get("architectures"):
        config.architectures = ["VisionEncoderDecoderModel"]
    config.torch_dtype = str(next(iter(weights.parameters.values())).dtype)
    texts = {CONFIG_FILE: config.to_json(), GENERATION_CONFIG_FILE: _generation_config(model).to_json()}
    checkpoint.save(folder, tensors, texts)


def _generation_config(model: "FlaxVisionEncoderDecoderModel") -> GenerationConfig:
    """What generation_config.json says, completed with what decoding would take from elsewhere: other libraries look
    nowhere else."""
    generation = model.generation_config.copy()
    options = Options({}, model.generation_config, model.config)
    for name in GenerationConfig.field_names():
        value = options.value(name)
        if value is not None:
            setattr(generation, name, value)
    return generation
