"""Options of training reach what they are about; and a run with all of them at once leaves all that it promises."""

import contextlib
import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("grain")
pytest.importorskip("sacrebleu")
import yaml

from tests.cases import DIGITS, READER
from tests.training import tiny
from tests.training_data import written
from ved_core.processing import Processor
from ved_flax import ImageToText
from ved_flax.train import command
from ved_flax.train.building import build_model
from ved_flax.train.config import (
    AverageConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)
from ved_flax.train.metrics import METRICS
from ved_flax.train.program import make_program, update_flops
from ved_flax.train.run import evaluation_options, evaluator
from ved_flax.train.step import StepOptions


def test_the_config_reaches_the_step():
    config = TrainConfig(
        accumulation=2,
        loss=LossConfig(label_smoothing=0.1, z_loss=0.01),
        average=AverageConfig(decay=0.9),
        model=ModelConfig(interpolate_pos_encoding=True),
        optimizer=OptimizerConfig(freeze_encoder=True),
    )
    program = make_program(config, tiny())
    assert StepOptions(2, 0.1, 0.01, 0.9, True) in program.make_step.args
    assert program.averaged
    assert all(name.startswith("encoder.") for name in program.frozen)
    assert not any(name.startswith("encoder.") for name in program.params)


def test_operations_are_those_of_the_batch_however_it_is_computed():
    def model():
        return tiny(("vit", "gpt2"))

    def counted(model, **fields):
        return update_flops(TrainConfig(**fields), model, (3, 32, 32), 6)

    once = counted(model())
    assert counted(model(), batch_size=32) == pytest.approx(2 * once, rel=0.1)  # the optimizer's do not double
    assert counted(model(), accumulation=4) == once
    assert counted(model(), parallel=ParallelConfig(mode="pmap")) == once
    loops = model()
    loops.scan_layers()
    loops.gradient_checkpointing_enable()
    assert counted(loops) == once
    assert loops.decoder.blocks.scanned


def test_the_config_reaches_the_model():
    def traced(**fields):
        model = build_model(ModelConfig(pretrained=str(READER), **fields), seed=0)
        graphdef, params = nnx.split(model)
        pixels, labels = jnp.zeros((1, 3, 48, 48)), jnp.zeros((1, 4), int)

        def loss(params):
            return nnx.merge(graphdef, params)(pixels, labels=labels).loss

        return str(jax.make_jaxpr(jax.grad(loss))(params))

    def parts(text):
        return "remat" in text or "checkpoint[" in text, "scan[" in text, "bf16" in text

    assert parts(traced()) == (False, False, False)
    assert parts(traced(checkpoint_activations=True, scan_layers=True, dtype="bfloat16")) == (True, True, True)


def test_images_of_another_size_are_evaluated_too(tmp_path):
    processor = Processor.from_pretrained(READER)
    processor.image_processor.size = {"height": 64, "width": 64}
    config = TrainConfig(
        output=str(tmp_path / "run"),
        model=ModelConfig(pretrained=str(READER), interpolate_pos_encoding=True),
        data=DataConfig(evaluation_source=str(written(tmp_path, [("a.png", "one")])), max_length=4),
        evaluation=EvaluationConfig(batch_size=1, options={"max_new_tokens": 2}),
    )
    model = build_model(config.model, seed=0)
    options = evaluation_options(config, model, processor)
    with contextlib.ExitStack() as stack:
        evaluate = evaluator(config, model, processor, {"end_token_id": 2}, options, stack)
        result = evaluate(None, 0)
    assert result["samples"] == 1
    assert result.pictures[0][0].shape == (64, 64, 3)


@pytest.mark.slow
def test_a_run_with_everything(tmp_path):
    images = sorted(DIGITS.glob("*.png"))
    words = [reading.text for reading in ImageToText.from_pretrained(READER)(images)]
    rows = [{"image": str(path), "text": text} for path, text in zip(images, words, strict=True)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "output": str(tmp_path / "run"),
        "steps": 6,
        "batch_size": 16,
        "accumulation": 2,
        "model": {
            "pretrained": str(READER),
            "dtype": "bfloat16",
            "checkpoint_activations": True,
            "checkpoint_policy": "dots_saveable",
            "scan_layers": True,
            "overrides": {"encoder": {"hidden_dropout_prob": 0.1}},
        },
        "data": {
            "source": str(tmp_path / "list.jsonl"),
            "evaluation_source": str(tmp_path / "list.jsonl"),
            "image_folder": str(DIGITS),
            "max_length": 8,
            "workers": 1,
            "augment": 0.5,
        },
        "loss": {"label_smoothing": 0.1, "z_loss": 1e-4, "not_finite": "skip"},
        "optimizer": {
            "learning_rate": 1e-4,
            "arguments": {"b2": 0.98},
            "encoder_multiplier": 0.1,
            "decoder_multiplier": 0.5,
            "freeze": [r"encoder\.patches"],
        },
        "schedule": {"kind": "linear", "warmup_steps": 2, "final": 0.1},
        "average": {"decay": 0.5},
        "parallel": {"data": 2, "fsdp": 2, "model": 2},
        "checkpoint": {"every": 2, "keep": 1, "keep_period": 4, "export_every": 3},
        "evaluation": {
            "at_start": True,
            "every": 3,
            "metrics": list(METRICS),
            "metric": "cer",
            "options": {"num_beams": 2, "max_new_tokens": 8},
        },
        "logging": {"every": 2, "sample_ids": True, "compilation_cache": str(tmp_path / "cache")},
        "report": {"profile_from": 2, "profile_to": 3},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert command.main(["--config", str(tmp_path / "run.yaml")]) == command.DONE
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    evaluations = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert list(evaluations) == [0, 3, 6]
    assert all(evaluation.keys() >= set(METRICS) for evaluation in evaluations.values())
    assert evaluations[0]["exact_match"] == 1.0
    predictions = {path.name for path in (run / "predictions").iterdir()}
    assert predictions == {f"step-0000000{step}.jsonl" for step in (0, 3, 6)}
    pictures = {path.name for path in (run / "pictures").iterdir()}
    assert pictures == {"curves.png", *(f"samples-0000000{step}.png" for step in (0, 3, 6))}
    assert any(path.name.startswith("events.") for path in (run / "tensorboard").iterdir())
    assert list((run / "profile").rglob("*.xplane.pb"))
    assert len((run / "samples.jsonl").read_text().splitlines()) == 6
    assert {path.name for path in (run / "exports").iterdir()} == {"3", "6"}
    steps = {int(path.name) for path in (run / "checkpoints").iterdir()}
    assert {4, 6} <= steps  # kept for ever; the latest
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    read = ImageToText.from_pretrained(run / "model")
    assert [reading.text for reading in read(images)] == words
