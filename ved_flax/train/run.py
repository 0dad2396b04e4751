"""A training run from its config alone: devices, model, data and the loop."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ved_core.errors import ConfigError
from ved_core.generation.options import Options
from ved_core.processing import Processor
from ved_flax import FlaxVisionEncoderDecoderModel, parallel
from ved_flax.compilation_cache import keep_compiled
from ved_flax.train.building import build_model, processor_folder
from ved_flax.train.config import TrainConfig
from ved_flax.train.data.batches import evaluation_batches, training_batches
from ved_flax.train.evaluation import Evaluator
from ved_flax.train.loop import Trainer
from ved_flax.train.placement import Placement
from ved_flax.train.reporters.speed import peak_flops
from ved_flax.train.reporters.standard import standard_reporters


@contextlib.contextmanager
def prepared(config: TrainConfig) -> Iterator[Trainer]:
    """The run that a config describes, ready to be trained. Raises VedErrors that name the fix."""
    if config.logging.compilation_cache is not None:
        keep_compiled(config.logging.compilation_cache)
    parallel.initialise(config.parallel.coordinator, config.parallel.processes, config.parallel.process)
    placement = Placement(config.parallel)
    placement.check_batch(config.batch_size, config.accumulation)
    if config.evaluation.metric is not None and config.evaluation.every is None:
        raise ConfigError("evaluation.metric chooses a checkpoint by evaluations: set evaluation.every too")
    if config.evaluation.metric not in (None, *config.evaluation.metrics):
        raise ConfigError(
            f"evaluation.metric = {config.evaluation.metric!r} should be one of evaluation.metrics, "
            f"{', '.join(config.evaluation.metrics)}"
        )
    evaluated = config.evaluation.every is not None or config.evaluation.at_start
    if evaluated and config.data.evaluation_source is None:
        raise ConfigError("evaluation.every or at_start is set, and data.evaluation_source is not: name the samples")
    folder = processor_folder(config.model)
    if folder is None:
        raise ConfigError("model.processor is not set, and there is no checkpoint to take it from")
    model = build_model(config.model, config.seed)
    processor = Processor.from_pretrained(folder)
    generation = evaluation_options(config, model, processor)
    index, count = placement.share
    tokens = {"end_token_id": end_token(model), "vocab_size": model.config.decoder.vocab_size}
    with contextlib.ExitStack() as stack:
        batches = training_batches(
            config.data,
            processor,
            batch_size=config.batch_size,
            process_index=index,
            process_count=count,
            **tokens,
        )
        stack.enter_context(contextlib.closing(batches))
        evaluate = None
        if evaluated:
            evaluate = evaluator(config, model, processor, tokens, generation, stack)

        def reporters(step: int) -> list[Any]:
            peak = peak_flops(placement.mesh.devices.flat[0])
            return standard_reporters(
                config.report,
                Path(config.output).expanduser(),
                total=config.steps,
                step=step,
                every=config.logging.every,
                flops=lambda: trainer.step_flops(),
                peak=None if peak is None else peak * placement.mesh.size,
            )

        trainer = Trainer(
            config, model, batches, placement=placement, reporters=reporters, evaluate=evaluate, processor=folder
        )
        yield trainer


def evaluation_options(
    config: TrainConfig, model: FlaxVisionEncoderDecoderModel, processor: Processor
) -> dict[str, Any]:
    """Options of `evaluate`: those of generate, images taken as in training. Raises GenerationError for what generate
    does not take, at once and not at the first evaluation."""
    options = {"interpolate_pos_encoding": config.model.interpolate_pos_encoding} | config.evaluation.options
    of_generate = {name: value for name, value in options.items() if name != "interpolate_pos_encoding"}
    rows = (config.evaluation.batch_size or config.batch_size) // jax.process_count()
    model.generation_request(rows, **{"tokenizer": processor.tokenizer} | of_generate)
    return options


def evaluator(
    config: TrainConfig,
    model: FlaxVisionEncoderDecoderModel,
    processor: Processor,
    tokens: Mapping[str, Any],
    options: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> Evaluator:
    """What the run evaluates with; its batches are closed with the stack."""
    batches = evaluation_batches(
        config.data,
        processor,
        batch_size=config.evaluation.batch_size or config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **tokens,
    )
    stack.enter_context(contextlib.closing(batches))
    return Evaluator(
        model,
        batches,
        processor,
        predictions=Path(config.output).expanduser() / "predictions",
        metrics=config.evaluation.metrics,
        pictures=config.evaluation.pictures,
        options=options,
    )


def end_token(model: FlaxVisionEncoderDecoderModel) -> int | None:
    """The token that ends a text, the first where there are several."""
    value = Options({}, model.generation_config, model.config).value("eos_token_id")
    return value[0] if isinstance(value, list | tuple) else value
