"""PyTorch models for tests: the tiny cases, their inputs, and ours with a reference model's weights."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

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


def ours(model: Any, folder: Path, **options: Any) -> VisionEncoderDecoderModel:
    """Our model with an oracle's weights, by way of its checkpoint."""
    model.save_pretrained(folder)
    return VisionEncoderDecoderModel.from_pretrained(folder, **options)
