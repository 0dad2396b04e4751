"""`VisionEncoderDecoderModel.from_encoder_decoder_pretrained`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from conversion.checkpoint import new_carried
from conversion.parts import Part, PartWeights
from conversion.tables import part_table
from conversion.warm_start import plan, report
from ved_torch import state
from ved_torch.decoders import build_decoder
from ved_torch.encoders import build_encoder
from ved_torch.half import Half
from ved_torch.layers.build import Builder

if TYPE_CHECKING:
    from ved_torch.model import VisionEncoderDecoderModel


def load(
    cls: type["VisionEncoderDecoderModel"],
    encoder: str | Path | None,
    decoder: str | Path | None,
    options: Mapping[str, Any],
    *,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | None,
) -> "VisionEncoderDecoderModel":
    """`from_encoder_decoder_pretrained`, which says the rest: a half is initialised only where it has new tensors."""
    warm = plan(encoder, decoder, options)
    make = Builder(generator=generator, dtype=dtype)
    halves: dict[Part, Half] = dict(warm.built)
    read: dict[Part, PartWeights] = {}
    for part, build in (("encoder", build_encoder), ("decoder", build_decoder)):
        if part in warm.built:
            continue
        config = getattr(warm.config, part)
        half = state.abstract(lambda build=build, config=config: build(config, make))
        read[part] = warm.read(part, state.shapes(half), "torch")
        values = read[part].weights.parameters
        if read[part].new:
            half = build(config, make)
            values = state.arrays(half) | values
        halves[part] = state.fill(half, values, dtype, device)
        half.carried = new_carried(part_table(config), seed=0) | read[part].weights.carried
    model = cls(warm.config, halves["encoder"], halves["decoder"], generator=generator, dtype=dtype)
    report(warm, read)
    return model.to(device).eval()
