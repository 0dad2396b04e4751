"""`evaluate`: texts generated for every sample of an evaluation set, and how near they are."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ved_core.inputs import IGNORED
from ved_core.processing import Processor
from ved_flax.compiled import Params
from ved_flax.generate import Generation
from ved_flax.generation.loop import Generated
from ved_flax.train.metrics import check_names, measure
from ved_flax.train.processes import gathered

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel
    from ved_flax.train.data.decoding import Batch


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was read in one sample, with the geometric mean of its tokens' probabilities."""

    id: str
    references: tuple[str, ...]
    prediction: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Evaluation(Mapping[str, float]):
    """Metrics by name, the predictions they are of, in the set's order, and some of this process's images. As a mapping
    it has the metrics, and how many samples and bad_samples there were."""

    metrics: dict[str, float]
    predictions: list[Prediction]
    bad: int = 0
    """Samples that could not be decoded and are in no metric."""
    pictures: list[tuple[np.ndarray, Prediction]] = dataclasses.field(default_factory=list)
    """(H, W, 3) uint8, as the encoder saw them."""

    @property
    def numbers(self) -> dict[str, float]:
        return {**self.metrics, "samples": len(self.predictions), "bad_samples": self.bad}

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class Evaluator:
    """`evaluate` with all but parameters and step given, as a training loop calls it: on all processes."""

    def __init__(
        self,
        model: "FlaxVisionEncoderDecoderModel",
        batches: Iterable["Batch"],
        processor: Processor,
        *,
        predictions: str | Path | None = None,
        **options: Any,
    ) -> None:
        """`predictions`: folder to write each evaluation's predictions to, as step-STEP.jsonl; `options`: metrics,
        pictures and options of `evaluate`."""
        check_names(options.get("metrics", ()))
        self.model, self.batches, self.processor = model, batches, processor
        self.folder, self.options = predictions, options

    def __call__(self, params: Params | None, step: int) -> Evaluation:
        evaluation = evaluate(self.model, params, self.batches, self.processor, **self.options)
        if self.folder is not None and jax.process_index() == 0:
            write_predictions(Path(self.folder, f"step-{step:08d}.jsonl"), evaluation.predictions)
        return evaluation


def evaluate(
    model: "FlaxVisionEncoderDecoderModel",
    params: Params | None,
    batches: Iterable["Batch"],
    processor: Processor,
    *,
    metrics: Sequence[str] = ("exact_match", "cer"),
    pictures: int = 12,
    options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Generate a text for every row of weight 1 and measure all of them.

    `params`: as `ved_flax.compiled.parameters` gives them, sharded in any way, of this process or of all (an average of
    them, say); None for the model's own. `batches`: this process's share; `Batches` begin again if they have ended.
    `options`: those of `generate`. Of several processes each reads its share on its own devices, all must call, and all
    are given the whole result. Raises GenerationError, ConfigError, DataError.
    """
    check_names(metrics)
    if hasattr(batches, "reset"):
        batches.reset()
    reader = _Reader(model, params, processor, dict(options or {}))
    found: list[tuple[list[int], Prediction]] = []
    shown: list[tuple[np.ndarray, Prediction]] = []
    bad = 0
    for step, batch, predictions in reader.read(batches):
        bad += sum(1 for name, weight in zip(batch["ids"], batch["weight"], strict=True) if name and not weight)
        for row, prediction in predictions:
            found.append(([step, jax.process_index(), row], prediction))
            if len(shown) < pictures:
                shown.append((processor.picture(batch["pixel_values"][row]), prediction))
    shares = gathered({"bad": bad, "found": [[place, dataclasses.astuple(prediction)] for place, prediction in found]})
    every = sorted((place, values) for share in shares for place, values in share["found"])
    whole = [Prediction(name, tuple(references), text, sure) for _, (name, references, text, sure) in every]
    measured = measure(metrics, [each.prediction for each in whole], [each.references for each in whole])
    return Evaluation(measured, whole, sum(share["bad"] for share in shares), shown)


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """One JSON object a line: id, reference (a list where there are several), prediction, confidence. The file appears
    when it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        try:
            for each in predictions:
                reference = each.references[0] if len(each.references) == 1 else list(each.references)
                values = {"id": each.id, "reference": reference, "prediction": each.prediction}
                file.write(json.dumps(values | {"confidence": each.confidence}, ensure_ascii=False) + "\n")
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o666 & ~_umask())
    os.replace(file.name, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Reader:
    """The model on this process's devices: parameters on each of them, images split over them."""

    def __init__(
        self,
        model: "FlaxVisionEncoderDecoderModel",
        params: Params | None,
        processor: Processor,
        options: dict[str, Any],
    ) -> None:
        self.model, self.processor = model, processor
        interpolate = options.pop("interpolate_pos_encoding", False)
        self.steps, own = model._jit_steps(interpolate, jax.local_devices()[0].platform)
        self.params = own if params is None else params
        self.options = {"tokenizer": processor.tokenizer, **options}
        self.mesh: Mesh | None = None

    def read(self, batches: Iterable["Batch"]) -> Iterator[tuple[int, "Batch", list[tuple[int, Prediction]]]]:
        """Each batch with its rows' predictions; a batch is computed while the one before becomes text."""
        waiting: tuple[int, Batch, Generation | None, Generated | None] | None = None
        for step, batch in enumerate(batches):
            computing = (step, batch, *self._generate(batch))
            if waiting is not None:
                yield waiting[0], waiting[1], self._texts(*waiting[1:])
            waiting = computing
        if waiting is not None:
            yield waiting[0], waiting[1], self._texts(*waiting[1:])

    def _generate(self, batch: "Batch") -> tuple[Generation | None, Generated | None]:
        """The computation, begun; nothing for a batch without samples."""
        rows = len(batch["weight"])
        if self.mesh is None:  # with or without samples: the others wait for this process's part of the parameters
            devices = jax.local_devices()
            self.mesh = Mesh(np.array(devices[: min(rows, len(devices))]), ("rows",))
            self.params = jax.tree.map(self._everywhere, self.params)
        if not np.any(batch["weight"]):
            return None, None
        filled = -(-rows // self.mesh.size) * self.mesh.size
        request = self.model.generation_request(rows, **self.options, batch_buckets=[filled])
        pixels = batch["pixel_values"]
        pixels = np.concatenate([pixels, pixels[-1:].repeat(filled - rows, axis=0)])
        split = NamedSharding(self.mesh, PartitionSpec("rows"))
        request = dataclasses.replace(request, rows=jax.device_put(request.rows, split))
        generation = Generation(self.steps, self.params, request, pixels=jax.device_put(pixels, split), images=None)
        return generation, generation.search()

    def _everywhere(self, array: Any) -> jax.Array:
        """The whole array on each device of this process."""
        assert self.mesh is not None
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if array.is_fully_replicated:
                array = array.addressable_data(0)
            else:
                array = multihost_utils.process_allgather(array, tiled=True)
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))

    def _texts(
        self, batch: "Batch", generation: Generation | None, generated: Generated | None
    ) -> list[tuple[int, Prediction]]:
        if generation is None or generated is None:
            return []
        output = generation.output(generated)
        each = generation.plan.returned
        texts = self.processor.decode(np.asarray(output.sequences)[::each])
        sure = np.asarray(output.confidences)[::each].tolist()
        return [
            (row, Prediction(batch["ids"][row], self._references(batch, row), texts[row], sure[row]))
            for row in np.flatnonzero(batch["weight"]).tolist()
        ]

    def _references(self, batch: "Batch", row: int) -> tuple[str, ...]:
        """What is right: as the batch says, or what its labels spell."""
        if "references" in batch:
            return tuple(batch["references"][row])
        labels = batch["labels"][row]
        return tuple(self.processor.decode(labels[labels != IGNORED][None]))
