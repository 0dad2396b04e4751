"""The least that a computation can take on this machine: what it must read by the measured bandwidth, or what it must
multiply by the measured rate, whichever is longer, for each of its parts."""

import dataclasses
import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from ved_torch import VisionEncoderDecoderModel

FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Of the machine, as `benchmarks.sides.ceilings` measured them: bytes and operations a second."""

    bandwidth: float
    matrix: float

    def seconds(self, read: float, flops: float) -> float:
        return max(read / self.bandwidth, flops / self.matrix)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one model has and does. Nothing is computed to find out."""

    encoder_bytes: int
    encoder_flops: float
    """Of one image."""
    once_bytes: int
    """Of what makes cross-attention's keys and values, and the projection before it."""
    step_bytes: int
    """Of the weights that each decoding step reads."""
    image_tokens: int
    layers: int
    width: int
    total_bytes: int

    def encode(self, ceilings: Ceilings, batch: int) -> float:
        return ceilings.seconds(self.encoder_bytes, self.encoder_flops * batch)

    def caches(self, batch: int, beams: int, tokens: int) -> int:
        """Bytes of keys and values: an image's own, which its beams share, and those of `tokens` tokens of each
        beam."""
        return 2 * FLOAT * self.layers * self.width * batch * (self.image_tokens + beams * tokens)

    def step(self, ceilings: Ceilings, batch: int, beams: int, tokens: int) -> float:
        """One step of all beams behind so many tokens."""
        weights = self.step_bytes / FLOAT
        attention = 2 * 2 * self.layers * self.width * (self.image_tokens + tokens)
        flops = batch * beams * (2 * weights + attention)
        return ceilings.seconds(self.step_bytes + self.caches(batch, beams, tokens), flops)

    def generate(self, ceilings: Ceilings, batch: int, beams: int, new: int) -> float:
        """Encode, prepare the caches, and `new` steps."""
        once = 2 * self.once_bytes / FLOAT * self.image_tokens * batch
        steps = sum(self.step(ceilings, batch, beams, tokens) for tokens in range(1, new + 1))
        return self.encode(ceilings, batch) + ceilings.seconds(self.once_bytes, once) + steps


@functools.cache
def costs(name: str) -> Costs:
    """Of a model in `benchmarks.models`."""
    config = models.config(name)
    with torch.device("meta"), torch.no_grad():
        model = VisionEncoderDecoderModel(config, attn_implementation="eager").eval()
        with FlopCounterMode(display=False) as counter:
            tokens = model.encode(torch.empty(1, 3, *models.size(name))).last_hidden_state.shape[1]
    cross = [part for block in model.decoder.blocks for part in (block.cross_attn.k, block.cross_attn.v)]
    once = sum(map(_count, [*cross, *([] if model.enc_to_dec_proj is None else [model.enc_to_dec_proj])]))
    step = sum(map(_count, model.decoder.blocks)) - sum(map(_count, cross)) + model.decoder.table().numel()
    return Costs(
        _count(model.encoder) * FLOAT,
        counter.get_total_flops(),
        once * FLOAT,
        step * FLOAT,
        tokens,
        len(model.decoder.blocks),
        config.decoder.hidden_size,
        model.num_parameters() * FLOAT,
    )


def train_flops(name: str, batch: int, tokens: int) -> float:
    """Of a forward and a backward pass."""
    config = models.config(name)
    with torch.device("meta"):
        model = VisionEncoderDecoderModel(config, attn_implementation="eager").train()
        pixels = torch.empty(batch, 3, *models.size(name))
        labels = torch.zeros(batch, tokens, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(pixels, labels=labels).loss.backward()
    return counter.get_total_flops()


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
