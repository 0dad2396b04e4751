"""What a config makes of a model: its parameters, optimizer and step, whether they run or are only compiled."""

import functools
from typing import TYPE_CHECKING, NamedTuple

import optax

from ved_flax import state
from ved_flax.train.config import TrainConfig
from ved_flax.train.optimizer import frozen_by, make_optimizer, make_schedule
from ved_flax.train.placement import MakeStep
from ved_flax.train.step import Arrays, StepOptions, make_step, split_parameters

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel


class Program(NamedTuple):
    """What a run is made of, but its batches and devices."""

    params: Arrays
    """What is trained."""
    frozen: Arrays
    """What stays as it is."""
    optimizer: optax.GradientTransformation
    averaged: bool
    """Whether a moving average of `params` is kept."""
    make_step: MakeStep


def make_program(config: TrainConfig, model: "FlaxVisionEncoderDecoderModel") -> Program:
    """The program of a model, or of an abstract one, whose parameters then are shapes. Raises ConfigError."""
    params, frozen = split_parameters(model, frozen_by(config.optimizer, state.shapes(model)))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, params, model.attached.new)
    options = StepOptions(
        config.accumulation,
        config.loss.label_smoothing,
        config.loss.z_loss,
        config.average.decay,
        config.model.interpolate_pos_encoding,
    )
    step = functools.partial(make_step, model, optimizer, schedule, options)
    return Program(params, frozen, optimizer, config.average.decay is not None, step)
