"""Tiny training runs for tests: models, batches that can be taken up again, and steps under any placement."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.cases import model_config
from ved_core.configs import VisionEncoderDecoderConfig
from ved_flax import FlaxVisionEncoderDecoderModel, state
from ved_flax.train.batches import Batch
from ved_flax.train.building import merged
from ved_flax.train.config import OptimizerConfig, ParallelConfig, ScheduleConfig
from ved_flax.train.optimizer import frozen_by, make_optimizer, make_schedule
from ved_flax.train.placement import Placement
from ved_flax.train.step import Metrics, StepOptions, make_step, split_parameters

SMALL = ("vit-nobias-1layer", "gpt2-unscaled-1layer")
"""Compiles fastest."""
DRY = {"encoder": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
DRY |= {"decoder": {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}}
"""No dropout."""
WET = {"encoder": {"hidden_dropout_prob": 0.1}, "decoder": {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}}


def tiny(pair: tuple[str, str] = SMALL, changes: dict[str, Any] = DRY, **options: Any) -> FlaxVisionEncoderDecoderModel:
    """A tiny model whose parameters are all random and large enough to have gradients that show."""
    config = VisionEncoderDecoderConfig.from_dict(merged(model_config(*pair), changes))
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config, **options))
    rng = np.random.default_rng(0)
    values = {
        name: 0.1 * rng.standard_normal(shape) + name.endswith("scale") for name, shape in state.shapes(model).items()
    }
    state.fill(model, values, jnp.dtype(jnp.float32))
    model.attached.made_of = (pair, changes, options)
    return model


class Synthetic:
    """Random batches: number i is a function of i. The last rows only fill up, and texts are of unequal length."""

    def __init__(self, config: VisionEncoderDecoderConfig, size: int = 16, share: tuple[int, int] = (0, 1)) -> None:
        encoder = config.encoder
        self.shape = (size, encoder.num_channels, *np.broadcast_to(encoder.image_size, 2))
        self.vocabulary = config.decoder.vocab_size
        self.rows = slice(share[0] * size // share[1], (share[0] + 1) * size // share[1])
        self.number = 0

    def __next__(self) -> Batch:
        rng = np.random.default_rng(self.number)
        pixels = rng.standard_normal(self.shape).astype(np.float32)
        labels = rng.integers(3, self.vocabulary, (len(pixels), 6)).astype(np.int32)
        labels[np.arange(6) >= rng.integers(2, 7, len(labels))[:, None]] = -100
        weight = (np.arange(len(pixels)) < len(pixels) - 3).astype(np.float32)
        ids = [f"{self.number}/{row}" for row in range(len(pixels))]
        self.number += 1
        rows = self.rows
        return {"pixel_values": pixels[rows], "labels": labels[rows], "weight": weight[rows], "ids": ids[rows]}

    def get_state(self) -> dict[str, int]:
        return {"number": self.number}

    def set_state(self, state: dict[str, int]) -> None:
        self.number = state["number"]

    def close(self) -> None:
        """Nothing to close."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of some steps: each one's metrics, and the parameters in their own shapes."""

    metrics: list[Metrics]
    params: dict[str, np.ndarray]
    state: Any

    @property
    def losses(self) -> list[float]:
        return [float(metrics.loss) for metrics in self.metrics]


COMPILED: dict[str, Any] = {}
"""Steps by all that they are made of: compiling takes most of the time."""


def train(
    model: FlaxVisionEncoderDecoderModel,
    steps: int,
    *,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig | None = None,
    accumulation: int = 1,
    decay: float | None = None,
    batches: Any = None,
    seed: int = 0,
) -> Run:
    """Some steps, without a loop around them."""
    params, frozen = split_parameters(model, frozen_by(optimizer, state.shapes(model)))
    rates = make_schedule(ScheduleConfig(), optimizer.learning_rate, 20)
    update = make_optimizer(optimizer, rates, params)
    placement = Placement(parallel or ParallelConfig(data=1))
    current = placement.initial(params, frozen, update, seed, average=decay is not None)
    key = repr((getattr(model.attached, "made_of", id(model)), optimizer, parallel, accumulation, decay))
    if key not in COMPILED:
        options = StepOptions(accumulation, decay=decay)
        COMPILED[key] = placement.compile(functools.partial(make_step, model, update, rates, options))
    step = COMPILED[key]
    batches = batches or Synthetic(model.config, share=placement.share)
    found = []
    for _ in range(steps):
        current, metrics, _ = step(current, placement.batch(next(batches)), placement.signals(0))
        found.append(jax.device_get(metrics))
    return Run(found, placement.fetch(current.params, placement.layouts.params), current)
