"""transformers' PyTorch classes as the reference: tiny models with every parameter perturbed."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.cases import REFERENCE_UNCACHED, Inputs, model_config


def perturbed(model: Any, seed: int = 0) -> Any:
    """A PyTorch model with noise on every parameter, so that one which is not mapped shows in the outputs."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def runnable(model: Any, decoder: str) -> Any:
    """transformers' model, without its cache where that cannot work."""
    if decoder in REFERENCE_UNCACHED:
        model.decoder.config.use_cache = model.generation_config.use_cache = False
    return model


def new(encoder: str, decoder: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny model of transformers' class, in evaluation mode, whose attention weights can be had. `changes`: more
    entries of its config.json."""
    import torch
    import transformers

    config = transformers.VisionEncoderDecoderConfig.from_dict(model_config(encoder, decoder) | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.VisionEncoderDecoderModel._from_config(config, attn_implementation="eager")
    return runnable(perturbed(model.eval(), seed), decoder)


def build(encoder: str, decoder: str, folder: Path, seed: int = 0) -> Any:
    """A new reference model, saved to `folder`."""
    model = new(encoder, decoder, seed)
    model.save_pretrained(folder)
    return model


def outputs(model: Any, batch: Inputs) -> Any:
    """All outputs of the masked call, and its loss."""
    import torch

    with torch.no_grad():
        return model(
            pixel_values=torch.tensor(batch.pixel_values),
            decoder_input_ids=torch.tensor(batch.decoder_input_ids),
            decoder_attention_mask=torch.tensor(batch.decoder_attention_mask),
            labels=torch.tensor(batch.labels),
            output_hidden_states=True,
            output_attentions=True,
        )


def greedy(model: Any, batch: Inputs, **options: Any) -> np.ndarray:
    """Greedy ids."""
    import torch

    return model.generate(torch.tensor(batch.pixel_values), do_sample=False, num_beams=1, **options).numpy()
