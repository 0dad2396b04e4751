"""From a checkpoint folder to a model and back."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from conversion import checkpoint
from conversion.folder import consistent
from conversion.source import Wanted
from conversion.tables import model_table
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.model import given_or_read
from ved_core.generation.config import GenerationConfig
from ved_core.hub import resolve
from ved_torch import state

if TYPE_CHECKING:
    from ved_torch.pretrained import PreTrainedModel

M = TypeVar("M", bound="PreTrainedModel")


def load(
    cls: Callable[..., M],
    name_or_path: str | Path,
    *,
    config: VisionEncoderDecoderConfig | Mapping[str, Any] | None,
    dtype: torch.dtype,
    device: torch.device | None,
    attn_implementation: str,
    revision: str | None,
    subfolder: str | None,
    wanted: Wanted,
    check_digests: bool | None,
) -> M:
    """`VisionEncoderDecoderModel.from_pretrained`, which says the rest."""
    folder = resolve(name_or_path, revision=revision, subfolder=subfolder, formats=wanted)

    def read() -> M:
        described = given_or_read(config, folder)
        # First: what has not the weights for its config is not built, however large that makes it.
        weights = checkpoint.load(folder, model_table(described), "torch", wanted, check_digests)
        place = torch.get_default_device() if device is None else device
        with ThreadPoolExecutor(1) as beside:
            # Copying takes its time without Python's lock, and describing the model with it.
            tensors = beside.submit(state.placed, weights.parameters, dtype, place)
            model = state.abstract(lambda: cls(described, dtype=dtype, attn_implementation=attn_implementation))
            model.generation_config = GenerationConfig.from_folder(folder)
            model.load_state_dict(tensors.result(), assign=True)
        model.carried = weights.carried
        return model.to(place).eval()

    return consistent(folder, read)


def save(model: "PreTrainedModel", folder: Path, format: str, max_shard_size: int | str | None) -> None:
    """`VisionEncoderDecoderModel.save_pretrained`, which says the rest."""
    weights = checkpoint.Weights(state.tensors(model), model.carried)
    checkpoint.save_model(folder, weights, model.config, model.generation_config, "torch", format, max_shard_size)
