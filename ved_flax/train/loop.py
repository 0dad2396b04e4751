"""The training loop: batches in, updates, checkpoints, evaluations, an exported model out."""

import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ved_core.errors import ConfigError, TrainingError
from ved_flax import FlaxVisionEncoderDecoderModel, parallel, state
from ved_flax.compiled import Params
from ved_flax.train.batches import Batch, Batches
from ved_flax.train.building import export
from ved_flax.train.checkpoint import Checkpoints
from ved_flax.train.config import TrainConfig
from ved_flax.train.interruption import Interruption
from ved_flax.train.placement import Placement
from ved_flax.train.program import make_program, update_flops
from ved_flax.train.reporting import JsonLines, Reporter
from ved_flax.train.requests import Asked, ExportRequest
from ved_flax.train.step import Arrays, Metrics, nested

log = logging.getLogger("ved")

MOST_SKIPPED = 100
"""So many batches in a row without a finite loss end a run that passes such batches by."""
SHOWN_IDS = 32
"""How many sample ids an error lists."""

Evaluate = Callable[[Params, int], Mapping[str, Any]]
"""(parameters as `ved_flax.compiled` takes them, step) -> results by name. All processes call it."""
Outcome = Literal["done", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Dispatched:
    """A step that the devices have been given, and may not have finished."""

    step: int
    ids: list[str]
    metrics: Metrics
    signal: jax.Array


class Trainer:
    """One training run. Its folder, `config.output`, says how far it has come."""

    def __init__(
        self,
        config: TrainConfig,
        model: FlaxVisionEncoderDecoderModel,
        batches: Batches,
        *,
        placement: Placement | None = None,
        reporters: Callable[[int], Sequence[Reporter]] = lambda resumed: (),
        evaluate: Evaluate | None = None,
        processor: Path | None = None,
    ) -> None:
        """Lay the run out on the devices, and take it up from its latest checkpoint.

        The model's parameters move to the devices: from here on it is a description without arrays, until `fill_model`.
        `reporters`: makes them, on process 0, given the step that the run goes on behind; `processor`: the folder of
        image processor and tokenizer, which are exported with the model. `batches` yields the share of each batch that
        `Placement.share` names. Raises ConfigError, CheckpointError.
        """
        self.config, self.model, self.batches = config, model, batches
        self.evaluate, self.processor = evaluate, processor
        self.output = Path(config.output).expanduser()
        self.placement = placement or Placement(config.parallel)
        self.placement.check_batch(config.batch_size, config.accumulation)
        self.nested = nested(model)
        program = make_program(config, model)
        self.state = self.placement.initial(
            program.params, program.frozen, program.optimizer, config.seed, average=program.averaged
        )
        make_step = program.make_step
        del program
        empty_model(model)
        self.run_step = self.placement.compile(make_step)
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.checkpoint, config.evaluation)
        self.step = 0
        self._resume()
        first = jax.process_index() == 0
        self.reporters = [*reporters(self.step)] if first else []
        if first:
            self.reporters.append(JsonLines(self.output / "metrics.jsonl", self.step))
        self.samples: JsonLines | None = None
        if config.logging.sample_ids:
            name = "samples.jsonl" if jax.process_count() == 1 else f"samples.{jax.process_index()}.jsonl"
            self.samples = JsonLines(self.output / name, self.step)
        self.export_request = ExportRequest(self.output / "export")
        # The host is a step ahead of the devices. Simulated ones share their threads: two steps at once may lock up.
        self._ahead = 0 if jax.default_backend() == "cpu" and self.placement.rows > 1 else 1
        self._pending: collections.deque[Dispatched] = collections.deque()
        self._shapes: tuple[Sequence[int], int] | None = None
        self._skipped_in_a_row = 0
        self._window = _Window()

    def _resume(self) -> None:
        restored = self.checkpoints.restore(self.state, self.placement)
        if restored is not None:
            self.step, self.state = restored.step, restored.state
            self.batches.set_state(restored.data)
            log.info("going on behind step %d", self.step)

    # The loop ---------------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Train until `config.steps`, the end of the batches, or SIGTERM or SIGINT: a checkpoint is written in each
        case, and the model exported but in the last. A file `export` in the output folder has it exported at once, to
        exports/STEP, and disappears.

        Raises TrainingError where a loss is not finite, naming the step, the samples and the last good checkpoint.
        """
        try:
            with Interruption() as interruption:
                outcome = self._train(interruption)
                if outcome == "done":
                    self._finish()
            return outcome
        finally:
            with contextlib.ExitStack() as closing:  # each, and checkpoints last, even where one fails
                for part in (self.checkpoints, self.samples, *self.reporters):
                    if part is not None:
                        closing.callback(part.close)

    def _train(self, interruption: Interruption) -> Outcome:
        config = self.config
        asked = Asked.NOTHING
        if self.step == 0 and config.evaluation.at_start and self.evaluate is not None:
            self._evaluate()
        while self.step < config.steps and asked != Asked.STOP:
            try:
                batch = next(self.batches)
            except StopIteration:
                log.warning("the batches end behind step %d of %d", self.step, config.steps)
                break
            self._dispatch(batch, self._asks(interruption))
            evaluated = due(self.step, config.evaluation.every) and self.evaluate is not None
            exported = due(self.step, config.checkpoint.export_every)
            saved = due(self.step, config.checkpoint.every)
            asked = self._settle(0 if evaluated or exported or saved else self._ahead)
            if asked == Asked.EXPORT:
                asked, exported = self._settle(0), True
            results = self._evaluate() if evaluated else None
            measured = config.evaluation.metric is not None
            # What is written of a step stays: the last one's checkpoint waits for its evaluation.
            if (saved and not (measured and self.step == config.steps)) or (evaluated and measured):
                self._save(results)
            if exported:
                self._export(self.output / "exports" / str(self.step))
        interrupted = Asked.STOP in (asked, self._settle(0))
        # A run that was asked to stop at its very end has ended all the same.
        return "interrupted" if self._leave(interrupted and self.step < config.steps) else "done"

    def _asks(self, interruption: Interruption) -> Asked:
        """What this process tells the others with the next step."""
        if interruption.asked:
            return Asked.STOP
        return Asked.EXPORT if jax.process_index() == 0 and self.export_request.made() else Asked.NOTHING

    def _leave(self, interrupted: bool) -> bool:
        """Write the last checkpoint of an interrupted run."""
        if interrupted:
            self._save(None)
            self.checkpoints.latest()
            log.warning("interrupted: all is saved behind step %d", self.step)
        return interrupted

    def _finish(self) -> None:
        """What follows the last step; done again where a run is started again that was interrupted here."""
        every = self.config.evaluation.every
        results = None
        if self.evaluate is not None and every is not None and not due(self.step, every):
            results = self._evaluate()
        self._save(results)
        self._export(self.output / "model")

    def _dispatch(self, batch: Batch, asks: Asked) -> None:
        """Give the devices a step, without waiting for it."""
        signals = self.placement.signals(asks)
        placed = self.placement.batch(batch)
        self._shapes = batch["pixel_values"].shape[1:], batch["labels"].shape[1]
        self.state, metrics, signal = self.run_step(self.state, placed, signals)
        self.step += 1
        self._pending.append(Dispatched(self.step, [name for name in batch["ids"] if name], metrics, signal))

    def _settle(self, ahead: int) -> Asked:
        """Wait for the steps that were dispatched, all but the latest `ahead`; what any process was asked for.

        All processes see the same signals at the same steps, and so stop together.
        """
        asked = Asked.NOTHING
        while len(self._pending) > ahead:
            done = self._pending.popleft()
            metrics, signal = jax.device_get((done.metrics, done.signal))
            asked = max(asked, Asked(int(signal)))
            self._check(done, metrics)
            if self.samples:
                self.samples.write(step=done.step, ids=done.ids)
            self._window.add(metrics)
            if due(done.step, self.config.logging.every) or done.step == self.config.steps:
                entry = self._window.close(metrics) | getattr(self.batches, "counts", {})
                for reporter in self.reporters:
                    reporter.on_step(done.step, entry)
        return asked

    def _check(self, done: Dispatched, metrics: Metrics) -> None:
        if metrics.finite:
            self._skipped_in_a_row = 0
            return
        ids = ", ".join(done.ids[:SHOWN_IDS]) + f" and {len(done.ids) - SHOWN_IDS} more" * (len(done.ids) > SHOWN_IDS)
        what = f"step {done.step}: the loss is {metrics.loss}, the gradient's norm {metrics.grad_norm}; samples: {ids}"
        self._skipped_in_a_row += 1
        if self.config.loss.not_finite == "skip" and self._skipped_in_a_row < MOST_SKIPPED:
            log.warning("%s: passed by", what)
            return
        self.checkpoints.wait()
        advice = "Look at these samples; a lower optimizer.learning_rate may help, or loss.not_finite=skip"
        raise TrainingError(f"{what}; {self.checkpoints.last_good()}. {advice}")

    # What is done with the state --------------------------------------------------------------------------------------

    def step_flops(self) -> float | None:
        """Operations of a step on all devices together, as `program.update_flops` counts them; None before the first
        step."""
        return None if self._shapes is None else update_flops(self.config, self.model, *self._shapes)

    def parameters(self) -> Params:
        """What is evaluated, on the devices: the moving average where there is one and `average.use` says so."""
        flat, layouts = self._chosen()
        flat_layouts = {name: layouts[name] for name in flat if layouts[name].padded is not None}
        whole = jax.jit(lambda arrays: parallel.unpack(arrays, flat_layouts))({n: flat[n] for n in flat_layouts})
        return self.nested(flat | whole)

    def _chosen(self) -> tuple[Arrays, dict[str, parallel.Layout]]:
        average = bool(self.state.average) and self.config.average.use
        trained = self.state.average if average else self.state.params
        layouts = self.placement.layouts
        return trained | self.state.frozen, layouts.params | layouts.frozen

    def fill_model(self) -> FlaxVisionEncoderDecoderModel:
        """Put the trained parameters back into the model, on this process's first device."""
        arrays = self.placement.fetch(*self._chosen())
        self.model.eval()
        return state.fill(self.model, arrays, jnp.dtype(jnp.float32))

    def _evaluate(self) -> Mapping[str, Any]:
        assert self.evaluate is not None
        results = self.evaluate(self.parameters(), self.step)
        metric = self.config.evaluation.metric
        if metric is not None and metric not in results:
            raise ConfigError(f"evaluation.metric = {metric!r} should be one of {', '.join(results)}")
        for reporter in self.reporters:
            reporter.on_evaluation(self.step, results)
        return results

    def _save(self, results: Mapping[str, Any] | None) -> None:
        numbers = {name: float(value) for name, value in (results or {}).items() if isinstance(value, int | float)}
        data = self.batches.get_state()
        self.checkpoints.save(self.step, self.state, self.placement.layouts, data, numbers)

    def _export(self, folder: Path) -> None:
        arrays = self.placement.fetch(*self._chosen())
        if jax.process_index() == 0:
            export(folder, self.model, arrays, self.processor)
            self.export_request.answered()


class _Window:
    """The steps between two records."""

    def __init__(self) -> None:
        self.images = self.tokens = 0.0
        self.skipped = 0
        self.since = time.monotonic()

    def add(self, metrics: Metrics) -> None:
        self.images += float(metrics.rows)
        self.tokens += float(metrics.tokens)
        self.skipped += not metrics.finite

    def close(self, metrics: Metrics) -> dict[str, float]:
        """What is reported, the last step's own numbers and what has been counted; counting begins again."""
        now = time.monotonic()
        entry = {name: float(getattr(metrics, name)) for name in ("loss", "accuracy", "grad_norm", "learning_rate")}
        entry |= {"images": self.images, "tokens": self.tokens, "skipped": self.skipped, "seconds": now - self.since}
        self.images, self.tokens, self.skipped, self.since = 0.0, 0.0, 0, now
        return entry


def due(step: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is done behind this one."""
    return every is not None and step % every == 0


def empty_model(model: nnx.Module) -> None:
    """Let go of a model's arrays; their shapes stay."""
    arrays = nnx.state(model, state.PARAMETERS)
    nnx.update(model, jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arrays))
