"""transformers' PyTorch classes as the reference: tiny models with every parameter perturbed."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.cases import REFERENCE_UNCACHED, Inputs, model_config


def build(encoder: str, decoder: str, folder: Path, seed: int = 0) -> Any:
    """A reference model in evaluation mode, saved to `folder`."""
    import torch
    import transformers

    config = transformers.VisionEncoderDecoderConfig(**model_config(encoder, decoder))
    model = transformers.VisionEncoderDecoderModel._from_config(config, attn_implementation="eager").eval()
    if decoder in REFERENCE_UNCACHED:
        model.decoder.config.use_cache = model.generation_config.use_cache = False
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
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
