"""A training run from its config alone: devices, model, data and the loop."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from ved_core.errors import ConfigError
from ved_core.generation.options import Options
from ved_core.processing import Processor
from ved_flax import FlaxVisionEncoderDecoderModel, parallel
from ved_flax.train.building import build_model, processor_folder
from ved_flax.train.config import TrainConfig
from ved_flax.train.data.batches import training_batches
from ved_flax.train.loop import Trainer
from ved_flax.train.placement import Placement


@contextlib.contextmanager
def prepared(config: TrainConfig) -> Iterator[Trainer]:
    """The run that a config describes, ready to be trained. Raises VedErrors that name the fix."""
    keep_compiled(config.logging.compilation_cache)
    parallel.initialise(config.parallel.coordinator, config.parallel.processes, config.parallel.process)
    placement = Placement(config.parallel)
    placement.check_batch(config.batch_size, config.accumulation)
    folder = processor_folder(config.model)
    if folder is None:
        raise ConfigError("model.processor is not set, and there is no checkpoint to take it from")
    model = build_model(config.model, config.seed)
    index, count = placement.share
    with contextlib.closing(
        training_batches(
            config.data,
            Processor.from_pretrained(folder),
            batch_size=config.batch_size,
            process_index=index,
            process_count=count,
            end_token_id=end_token(model),
            vocab_size=model.config.decoder.vocab_size,
        )
    ) as batches:
        yield Trainer(config, model, batches, placement=placement, processor=folder)


def end_token(model: FlaxVisionEncoderDecoderModel) -> int | None:
    """The token that ends a text, the first where there are several."""
    value = Options({}, model.generation_config, model.config).value("eos_token_id")
    return value[0] if isinstance(value, list | tuple) else value


def keep_compiled(folder: str | None) -> None:
    """Keep compiled programs in a folder, if JAX has not been given one already."""
    if folder is not None and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
