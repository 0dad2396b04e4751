"""The train step compiled ahead of time for a TPU that is not there: `ved train --compile-only --topology v5e:2x4`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ved_core.errors import ConfigError, VedError
from ved_core.processing import Processor
from ved_flax import FlaxVisionEncoderDecoderModel
from ved_flax.aot.compiling import compile_ahead
from ved_flax.aot.report import Report, lines, make_report
from ved_flax.aot.topology import Topology
from ved_flax.train.building import describe_model, processor_folder
from ved_flax.train.config import ModelConfig, TrainConfig
from ved_flax.train.placement import Placement
from ved_flax.train.program import make_program


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What was compiled, and what the compiler says of it."""

    topology: Topology
    mesh: dict[str, int]
    pixel_values: tuple[int, ...]
    """(B, C, H, W) of the whole batch."""
    labels: tuple[int, int]
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        shapes = {"pixel_values": self.pixel_values, "labels": self.labels}
        return {"topology": self.topology.name, "mesh": self.mesh, **shapes, **self.report.to_dict()}

    def lines(self) -> Iterator[str]:
        """To be read."""
        axes = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        yield f"train step for {self.topology.name} ({axes}), pixel_values {self.pixel_values}, labels {self.labels}"
        yield from lines(self.report, self.topology.chip)


def compile_step(config: TrainConfig, topology: Topology) -> Ahead:
    """Compile the step that `Trainer` would run on a topology's chips; nothing is allocated and no data is read.

    Raises ConfigError, and VedError where the step does not fit their memory.
    """
    if config.parallel.mode == "pmap":
        raise ConfigError("parallel.mode = 'pmap' is compiled on devices that are there only: use jit")
    model = describe_model(config.model)
    pixel_values = (config.batch_size, *image_shape(config.model, model))
    return compile_model_step(config, topology, model, pixel_values)


def compile_model_step(
    config: TrainConfig, topology: Topology, model: FlaxVisionEncoderDecoderModel, pixel_values: tuple[int, ...]
) -> Ahead:
    """`compile_step` of a model that is there as shapes."""
    placement = Placement(config.parallel, topology.devices)
    placement.check_batch(config.batch_size, config.accumulation)
    program = make_program(config, model)
    state = placement.lay_out(program.params, program.frozen, program.optimizer, average=program.averaged)
    labels = config.batch_size, config.data.max_length
    step = placement.compile(program.make_step)
    try:
        compiled = compile_ahead(step, state, *placement.batch_shapes(pixel_values, labels))
    except VedError as error:
        advice = (
            "a smaller batch_size, more accumulation, model.checkpoint_activations=true or more parallel.fsdp helps"
        )
        raise VedError(f"{error}; {advice}") from error
    return Ahead(topology, dict(placement.mesh.shape), pixel_values, labels, make_report(compiled, topology.chip))


def image_shape(config: ModelConfig, model: FlaxVisionEncoderDecoderModel) -> tuple[int, ...]:
    """(C, H, W) of the images that a run trains on: the model's, or what the processor makes where any size is taken.

    Raises ConfigError, HubError, ProcessorError.
    """
    encoder = model.config.encoder
    if not config.interpolate_pos_encoding:
        height, width = np.broadcast_to(encoder.image_size, 2)
        return encoder.num_channels, int(height), int(width)
    folder = processor_folder(config)
    if folder is None:
        raise ConfigError("model.processor is not set, and there is no checkpoint to take it from")
    blank = np.zeros((8, 8, 3), np.uint8)
    return tuple(Processor.from_pretrained(folder).pixel_values([blank]).shape[1:])
