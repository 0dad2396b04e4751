"""The model of a training run, and what is exported beside it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.saving import texts_beside
from ved_core.configs import Config, VisionEncoderDecoderConfig
from ved_core.configs.base import read_json
from ved_core.errors import ConfigError
from ved_core.generation.config import GenerationConfig
from ved_core.hub import resolve
from ved_flax import FlaxVisionEncoderDecoderModel, loading, state, warm_start
from ved_flax.train.config import ModelConfig

log = logging.getLogger("ved")


def build_model(config: ModelConfig, seed: int) -> FlaxVisionEncoderDecoderModel:
    """The model that is to be trained: float32 parameters, ready for the step.

    Raises ConfigError, HubError or CheckpointError, each naming the fix.
    """
    return _prepared(_made(config, seed), config)


def describe_model(config: ModelConfig) -> FlaxVisionEncoderDecoderModel:
    """The model of `build_model` with shapes for arrays: of checkpoints no more is read than which tensors they have.

    Raises as `build_model` does.
    """
    return _prepared(_made(config, None), config)


def _prepared(model: FlaxVisionEncoderDecoderModel, config: ModelConfig) -> FlaxVisionEncoderDecoderModel:
    model.set_attn_implementation(config.attn_implementation)
    model.scan_layers(config.scan_layers)
    if config.checkpoint_activations:
        model.gradient_checkpointing_enable(_policy(config.checkpoint_policy))
    elif config.checkpoint_policy is not None:
        raise ConfigError("model.checkpoint_policy needs model.checkpoint_activations: true")
    return model


def _made(config: ModelConfig, seed: int | None) -> FlaxVisionEncoderDecoderModel:
    """The model, abstract where there is no seed."""
    halves = config.encoder is not None and config.decoder is not None
    if [config.pretrained is not None, halves, config.config is not None].count(True) != 1:
        raise ConfigError("give one of model.pretrained, model.encoder with model.decoder, and model.config")
    dtype: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(jnp.float32)}
    if halves:
        for name, value in config.overrides.items():
            if name in ("encoder", "decoder") and not isinstance(value, Mapping):
                raise ConfigError(f"model.overrides.{name} = {value!r} should hold fields, `name: value`")
        options = {k: v for k, v in config.overrides.items() if k not in ("encoder", "decoder")}
        for part in ("encoder", "decoder"):
            options |= {f"{part}_{name}": value for name, value in config.overrides.get(part, {}).items()}
        asked = FlaxVisionEncoderDecoderModel, config.encoder, config.decoder, options
        if seed is None:
            model = warm_start.describe(*asked, **dtype).model
        else:
            model = warm_start.load(*asked, rngs=nnx.Rngs(seed), **dtype)
        check_known(model.config, config.overrides)
        return model
    source = Path(config.config) if config.config is not None else resolve(str(config.pretrained))
    values = read_json(source / "config.json" if source.is_dir() else source)
    whole = VisionEncoderDecoderConfig.from_dict(merged(values, config.overrides))
    check_known(whole, config.overrides)
    if seed is None:
        model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(whole, **dtype))
        if config.pretrained is not None:
            model.generation_config = GenerationConfig.from_folder(source)
        return model
    if config.config is not None:
        return FlaxVisionEncoderDecoderModel(whole, rngs=nnx.Rngs(seed), **dtype)
    return FlaxVisionEncoderDecoderModel.from_pretrained(source, config=whole, **dtype)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict with some of its values changed."""
    found = dict(values)
    for name, value in changes.items():
        inside = found.get(name)
        found[name] = merged(inside, value) if isinstance(inside, Mapping) and isinstance(value, Mapping) else value
    return found


def check_known(config: Config, overrides: Mapping[str, Any], inside: str = "model.overrides") -> None:
    """Raises ConfigError for an override of a field that does nothing: configs keep what they do not know."""
    for name, value in overrides.items():
        if isinstance(half := getattr(config, name, None), Config) and isinstance(value, Mapping):
            check_known(half, value, f"{inside}.{name}")
        elif name not in config.field_names() and name not in config.aliases:
            raise ConfigError(f"{inside}.{name}: {type(config).__name__} has no such field")


def _policy(name: str | None) -> Any:
    if name is None:
        return None
    named = [n for n in dir(jax.checkpoint_policies) if n.endswith(("saveable", "dots", "dims"))]
    known = [n for n in named if not n.startswith("offload")]  # those are made from more than their names
    if name not in known:
        raise ConfigError(f"model.checkpoint_policy = {name!r} should be one of {', '.join(known)}")
    return getattr(jax.checkpoint_policies, name)


def processor_folder(config: ModelConfig) -> Path | None:
    """The folder of image processor and tokenizer. Raises HubError."""
    name = config.processor or config.pretrained or config.decoder
    if name is None and config.config is not None:
        path = Path(config.config)
        return path if path.is_dir() else path.parent
    return None if name is None else resolve(name)


def export(
    folder: Path, model: FlaxVisionEncoderDecoderModel, arrays: Mapping[str, np.ndarray], processor: Path | None
) -> None:
    """Write a checkpoint that transformers and both frameworks load: the model with `arrays` as its parameters, and the
    files of its image processor and tokenizer."""
    loading.save_arrays(model, folder, arrays, {} if processor is None else texts_beside(processor))
