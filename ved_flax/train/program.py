"""What a config makes of a model: its parameters, optimizer and step, whether they run or are only compiled."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from ved_flax import state
from ved_flax.train.config import TrainConfig
from ved_flax.train.optimizer import frozen_by, make_optimizer, make_schedule
from ved_flax.train.placement import MakeStep
from ved_flax.train.reporters.speed import step_flops
from ved_flax.train.step import Arrays, DeviceBatch, StepOptions, initial_state, make_step, split_parameters

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


def update_flops(
    config: TrainConfig, model: "FlaxVisionEncoderDecoderModel", image: Sequence[int], length: int
) -> float | None:
    """Operations of one update by a batch of images (C, H, W) and texts of `length` tokens, on all devices together, by
    the compiler's count; None where it does not tell. Loops, whose bodies it counts once, kernels, which it cannot see
    into, and what is computed twice to save memory are left out."""
    plain = nnx.clone(model)
    plain.gradient_checkpointing_disable()
    plain.scan_layers(False)
    plain.set_attn_implementation("xla")
    program = make_program(dataclasses.replace(config, accumulation=1), plain)
    make_state = functools.partial(initial_state, optimizer=program.optimizer, seed=0, average=program.averaged)
    rows = config.batch_size
    shapes = ((rows, *image), np.float32), ((rows, length), np.int32), ((rows,), np.float32)
    batch = DeviceBatch(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))  # type: ignore[arg-type]
    states = jax.eval_shape(make_state, program.params, program.frozen)
    return step_flops(jax.jit(program.make_step()).lower(states, batch))
