"""`VisionEncoderDecoderModel.from_encoder_decoder_pretrained`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from conversion.checkpoint import new_carried, of_part
from conversion.parts import Part, PartWeights
from conversion.tables import part_table
from conversion.warm_start import WarmStart, plan, report
from ved_torch import state
from ved_torch.decoders import build_decoder
from ved_torch.encoders import build_encoder
from ved_torch.half import Half
from ved_torch.layers.build import Builder

if TYPE_CHECKING:
    from ved_torch.pretrained import PreTrainedModel

M = TypeVar("M", bound="PreTrainedModel")


def load(
    cls: Callable[..., M],
    encoder: str | Path | None,
    decoder: str | Path | None,
    options: Mapping[str, Any],
    *,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | None,
) -> M:
    """`from_encoder_decoder_pretrained`, which says the rest: a half is initialised only where it has new tensors."""
    warm = plan(encoder, decoder, options)
    make = Builder(generator=generator, dtype=dtype)
    halves: dict[Part, Any] = dict(warm.built)
    read: dict[Part, PartWeights] = {}
    for part, build in (("encoder", build_encoder), ("decoder", build_decoder)):
        if part not in warm.built:
            halves[part], read[part] = load_half(warm, part, build, make, device)
    model = cls(warm.config, halves["encoder"], halves["decoder"], generator=generator, dtype=dtype)
    projection = warm.projection("torch")
    if projection and model.enc_to_dec_proj is not None:
        state.fill(model.enc_to_dec_proj, of_part(projection, "enc_to_dec_proj"), make.dtype, device)
    report(warm, read)
    return model.to(device).eval()


def load_half(
    warm: WarmStart, part: Part, build: Callable[..., Half], make: Builder, device: torch.device | None
) -> tuple[Half, PartWeights]:
    """A half with its weights, and what its checkpoint had of them."""
    config = getattr(warm.config, part)
    half = state.abstract(lambda: build(config, make))
    read = warm.read(part, "torch")
    values = read.weights.parameters
    if read.new:
        fresh = state.arrays(build(config, make))
        values = {**{name: fresh[name] for name in fresh.keys() - values.keys()}, **values}
        del fresh  # before the others' memory is needed
    state.fill(half, values, make.dtype, device)
    half.carried = {**new_carried(part_table(config), seed=0), **read.weights.carried}
    return half, read
