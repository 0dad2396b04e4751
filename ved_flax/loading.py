"""From a checkpoint folder to a model and back."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import checkpoint
from conversion.folder import consistent
from conversion.source import Wanted
from conversion.tables import model_table
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.model import given_or_read
from ved_core.generation.config import GenerationConfig
from ved_core.hub import resolve
from ved_flax import state
from ved_flax.platforms import default_device

if TYPE_CHECKING:
    from ved_flax.pretrained import FlaxPreTrainedModel

M = TypeVar("M", bound="FlaxPreTrainedModel")


def load(
    cls: Callable[..., M],
    name_or_path: str | Path,
    *,
    config: VisionEncoderDecoderConfig | Mapping[str, Any] | None,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    attn_implementation: str,
    revision: str | None,
    subfolder: str | None,
    wanted: Wanted,
    check_digests: bool | None,
) -> M:
    """`FlaxVisionEncoderDecoderModel.from_pretrained`, which says the rest."""
    folder = resolve(name_or_path, revision=revision, subfolder=subfolder, formats=wanted)

    def read() -> M:
        described = given_or_read(config, folder)
        # First: what has not the weights for its config is not built, however large that makes it.
        weights = checkpoint.load(folder, model_table(described), "flax", wanted, check_digests)
        with ThreadPoolExecutor(1) as beside:
            # Copying takes its time without Python's lock, and describing the model with it.
            arrays = beside.submit(state.placed, weights.parameters, param_dtype, default_device())
            model = state.abstract(
                lambda: cls(
                    described,
                    rngs=cast(nnx.Rngs, state.Undrawn()),
                    dtype=dtype,
                    param_dtype=param_dtype,
                    attn_implementation=attn_implementation,
                )
            )
            model.generation_config = GenerationConfig.from_folder(folder)
            state.assign(model, arrays.result())
        model.carry(weights.carried)
        return model

    return consistent(folder, read)


def save(model: "FlaxPreTrainedModel", folder: Path, format: str, max_shard_size: int | str | None) -> None:
    """`FlaxVisionEncoderDecoderModel.save_pretrained`, which says the rest."""
    weights = checkpoint.Weights(state.tensors(model), model.carried)
    checkpoint.save_model(folder, weights, model.config, model.generation_config, "flax", format, max_shard_size)


def save_arrays(
    model: "FlaxPreTrainedModel",
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    beside: Mapping[str, bytes] = {},
) -> None:
    """`save` with other parameters than those that lie in the model, under the same dotted names, and other files
    `beside` them."""
    weights = checkpoint.Weights(dict(arrays), model.carried)
    checkpoint.save_model(folder, weights, model.config, model.generation_config, "flax", beside=beside)
