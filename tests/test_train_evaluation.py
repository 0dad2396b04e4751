"""Evaluation with generate: every sample once, whatever holds the parameters and however many processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cases import DIGITS, READER, ROOT
from ved_core.errors import ConfigError, GenerationError, SampleError
from ved_flax.train.data import DataConfig
from ved_flax.train.data.samples import Sample

pytest.importorskip("grain")
pytest.importorskip("jiwer")

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ved_flax import ImageToText
from ved_flax.compiled import parameters
from ved_flax.train.data.batches import Batches, evaluation_batches
from ved_flax.train.evaluation import Evaluation, Evaluator, Prediction, evaluate, write_predictions

IMAGES = sorted(DIGITS.glob("*.png"))[:6]


class Examples:
    """The example images, one more that is torn, and what stands on them; the third has a wrong reference first."""

    fingerprint = ""

    def __init__(self, readings: list[str]) -> None:
        self.readings = readings

    def __len__(self) -> int:
        return len(IMAGES) + 1

    def name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        if index == len(IMAGES):
            raise SampleError("torn")
        texts = ("nothing", self.readings[index]) if index == 2 else (self.readings[index],)
        return Sample(self.name(index), IMAGES[index], texts)


@pytest.fixture(scope="module")
def reader() -> ImageToText:
    return ImageToText.from_pretrained(READER)


@pytest.fixture(scope="module")
def readings(reader: ImageToText) -> list[Any]:
    result = reader(list(IMAGES), batch_size=4)
    assert isinstance(result, list)
    return result


@pytest.fixture
def batches(reader: ImageToText, readings: list[Any]) -> Any:
    opened: list[Batches] = []

    def make(**options: Any) -> Batches:
        config = DataConfig(max_length=8, max_bad_share=0.5)
        source = Examples([reading.text for reading in readings])
        opened.append(evaluation_batches(config, reader.processor, source=source, **{"batch_size": 4} | options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def run(reader: ImageToText, batches: Any, params: Any = None, **options: Any) -> Evaluation:
    return evaluate(reader.model, params, batches, reader.processor, **options)


def test_every_sample_is_read_once_as_by_itself(reader: ImageToText, readings: list[Any], batches: Any) -> None:
    share = batches()
    result = run(reader, share, metrics=["exact_match", "cer", "rouge_l"], pictures=5)
    assert [each.id for each in result.predictions] == [f"{i}.png" for i in range(6)]
    assert [each.prediction for each in result.predictions] == [reading.text for reading in readings]
    assert np.allclose([each.confidence for each in result.predictions], [x.confidence for x in readings], atol=1e-5)
    assert result.predictions[2].references == ("nothing", readings[2].text)
    assert result.metrics == {"exact_match": 1.0, "cer": 0.0, "rouge_l": 1.0}
    assert dict(result) == {**result.metrics, "samples": 6, "bad_samples": 1}
    assert [each.id for _, each in result.pictures] == [f"{i}.png" for i in range(5)]
    again = run(reader, share, metrics=["exact_match"])
    assert [each.prediction for each in again.predictions] == [each.prediction for each in result.predictions]


def test_given_parameters_are_used_however_they_are_sharded(reader: ImageToText, batches: Any) -> None:
    params = parameters(reader.model)
    share = batches()
    expected = run(reader, share)

    def scattered(array: Any) -> Any:
        mesh = Mesh(np.array(jax.devices()), ("fsdp",))
        axis = next((i for i, size in enumerate(array.shape) if size % mesh.size == 0), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")
        return jax.device_put(array, NamedSharding(mesh, spec))

    assert run(reader, share, jax.tree.map(scattered, params)).predictions == expected.predictions
    zeros = run(reader, share, jax.tree.map(np.zeros_like, params), metrics=["exact_match"])
    assert zeros.metrics == {"exact_match": 0.0}


def test_shares_of_several_processes_are_the_whole(reader: ImageToText, batches: Any) -> None:
    whole = run(reader, batches()).predictions
    shares = [run(reader, batches(batch_size=8, process_index=i, process_count=2)).predictions for i in range(2)]
    assert [each.id for share in shares for each in share] == [each.id for each in whole]
    assert [each.prediction for share in shares for each in share] == [each.prediction for each in whole]


def test_a_batch_that_does_not_divide_over_the_devices(reader: ImageToText, batches: Any) -> None:
    assert len(jax.devices()) == 8
    whole = run(reader, batches()).predictions
    assert [each.prediction for each in run(reader, batches(batch_size=9)).predictions] == [x.prediction for x in whole]


def test_options_and_references_from_labels(reader: ImageToText, readings: list[Any], batches: Any) -> None:
    plain = [{name: x for name, x in batch.items() if name != "references"} for batch in batches()]
    beams = {"num_beams": 2, "max_new_tokens": 8}
    result = run(reader, plain, options=beams | {"num_return_sequences": 2})
    assert result.predictions == run(reader, plain, options=beams).predictions
    assert [each.references for each in result.predictions] == [
        ("nothing" if i == 2 else reading.text,) for i, reading in enumerate(readings)
    ]
    assert len(result.predictions) == 6
    with pytest.raises(GenerationError, match="no option 'beams'"):
        run(reader, plain, options={"beams": 2})
    with pytest.raises(ConfigError, match="no metric 'loss'"):
        run(reader, None, metrics=["loss"])


def test_an_evaluator_writes_predictions(reader: ImageToText, batches: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(reader.model, batches(), reader.processor, predictions=tmp_path / "p", metrics=["wer"])
    result = evaluator(parameters(reader.model), 12)
    assert list(result) == ["wer", "samples", "bad_samples"]
    assert len((tmp_path / "p" / "step-00000012.jsonl").read_text().splitlines()) == 6
    with pytest.raises(ConfigError, match="no metric 'x'"):
        Evaluator(reader.model, [], reader.processor, metrics=["x"])


def test_no_samples_at_all(reader: ImageToText) -> None:
    assert run(reader, []) == Evaluation({"exact_match": 0.0, "cer": 0.0}, [])


def test_predictions_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "step-5.jsonl"
    write_predictions(path, [Prediction("a", ("ä",), "\n", 0.5), Prediction("b", ("x", "y"), "x", 1.0)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": "a", "reference": "ä", "prediction": "\n", "confidence": 0.5},
        {"id": "b", "reference": ["x", "y"], "prediction": "x", "confidence": 1.0},
    ]
    with pytest.raises(AttributeError):
        write_predictions(path, [Prediction("c", ("x",), "x", 1.0), None])  # type: ignore[list-item]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_text().startswith('{"id": "a"')


def test_pictures_are_what_the_encoder_saw(reader: ImageToText) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert np.array_equal(reader.processor.picture(reader.processor.pixel_values([pixels])[0]), pixels)


PROCESS = """
import sys

import jax

port, index, folder = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.cases import READER
from tests.test_train_evaluation import DataConfig, Examples, evaluation_batches
from ved_core.processing import Processor
from ved_flax import FlaxVisionEncoderDecoderModel
from ved_flax.compiled import parameters
from ved_flax.train.evaluation import evaluate, write_predictions

model, processor = FlaxVisionEncoderDecoderModel.from_pretrained(READER), Processor.from_pretrained(READER)
mesh = Mesh(np.array(jax.devices()), ("all",))


def spread(array):
    array, split = np.asarray(array), array.shape and array.shape[0] % 4 == 0
    sharding = NamedSharding(mesh, PartitionSpec("all") if split else PartitionSpec())
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


config = DataConfig(max_length=8, max_bad_share=1.0)
params = jax.tree.map(spread, parameters(model))
for size in (4, 16):  # of the larger batch the second process has no sample
    share = evaluation_batches(
        config, processor, source=Examples(["ä"] * 6), batch_size=size, process_index=int(index), process_count=2
    )
    result = evaluate(model, params, share, processor, metrics=["cer"])
    assert result.bad == 1
    write_predictions(f"{folder}/{index}-{size}.jsonl", result.predictions)
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(reader: ImageToText, readings: list[Any], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(index), str(tmp_path)],
            env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    for size in (4, 16):
        lines = [(tmp_path / f"{index}-{size}.jsonl").read_text() for index in range(2)]
        assert lines[0] == lines[1]
        values = [json.loads(line) for line in lines[0].splitlines()]
        assert [value["id"] for value in values] == [f"{i}.png" for i in range(6)]
        assert [value["prediction"] for value in values] == [reading.text for reading in readings]
