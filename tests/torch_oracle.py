"""transformers' own PyTorch class on the tiny cases: what ours is compared with."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from tests import cases
from ved_torch import VisionEncoderDecoderModel

# On tiny tensors a second thread only costs.
torch.set_num_threads(1)

PAIRS = [(encoder, "gpt2") for encoder in cases.ENCODERS] + [("vit", decoder) for decoder in cases.DECODERS]
PAIRS = [pair for pair in PAIRS if not cases.REFERENCE_FAILS.keys() & set(pair)]
"""Every encoder and every decoder of the tables that transformers can run, in at least one pair."""
PAIRS = sorted({*PAIRS, *cases.MIXED})


def tensors(config: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
    """A batch for any tiny model, by argument name."""
    return {name: torch.from_numpy(value) for name, value in vars(cases.inputs(config, **kwargs)).items()}


def perturbed(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with noise on every parameter, so that one which is not mapped shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def oracle(encoder: str, decoder: str, **changes: Any) -> Any:
    """A tiny model of transformers' class, in evaluation mode, whose attention weights can be had. `changes`: more
    entries of its config.json."""
    config = transformers.VisionEncoderDecoderConfig.from_dict(cases.model_config(encoder, decoder) | changes)
    model = transformers.VisionEncoderDecoderModel(config)
    model.set_attn_implementation("eager")
    return runnable(perturbed(model).eval(), decoder)


def runnable(model: Any, decoder: str) -> Any:
    """transformers' model, without its cache where that cannot work."""
    if decoder in cases.REFERENCE_UNCACHED:
        model.decoder.config.use_cache = False
        model.generation_config.use_cache = False
    return model


def ours(model: Any, folder: Path, **options: Any) -> VisionEncoderDecoderModel:
    """Our model with an oracle's weights, by way of its checkpoint."""
    model.save_pretrained(folder)
    return VisionEncoderDecoderModel.from_pretrained(folder, **options)
