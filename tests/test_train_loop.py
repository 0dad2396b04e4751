"""The training loop: it learns, evaluates, exports, and says what went wrong."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

pytest.importorskip("flax")
pytest.importorskip("orbax.checkpoint")
from tests.cases import READER, inputs
from tests.training import Synthetic, tiny
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError, TrainingError
from ved_flax import FlaxVisionEncoderDecoderModel, compiled, state
from ved_flax.train import loop
from ved_flax.train.config import (
    AverageConfig,
    CheckpointConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)
from ved_flax.train.loop import Trainer
from ved_flax.train.program import update_flops
from ved_flax.train.reporting import JsonLines
from ved_flax.train.requests import ExportRequest

END, FIRST = 2, 3
SIDE = 16


def digit(value, rng):
    """A picture of a digit: somewhere, larger or smaller, turned, with noise."""
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 60)))
    font = ImageFont.load_default(size=int(rng.integers(13, 16)))
    place = tuple(rng.integers(2, 5, 2).tolist())
    ImageDraw.Draw(image).text(place, str(value), fill=int(rng.integers(160, 256)), font=font)
    image = image.rotate(float(rng.uniform(-5, 5)))
    return np.asarray(image, np.float32)[None] / 127.5 - 1 + 0.1 * rng.standard_normal((1, SIDE, SIDE))


class Digits:
    """Pictures of single digits, and their names as tokens; number i of the training batches is a function of i."""

    def __init__(self, size=64, seed=0):
        self.size, self.seed, self.number = size, seed, 0

    def __next__(self):
        rng = np.random.default_rng((self.seed, self.number))
        self.number += 1
        values = rng.integers(0, 10, self.size)
        pixels = np.stack([digit(value, rng) for value in values]).astype(np.float32)
        labels = np.stack([FIRST + values, np.full(self.size, END)], axis=1).astype(np.int32)
        return {
            "pixel_values": pixels,
            "labels": labels,
            "weight": np.ones(self.size, np.float32),
            "ids": [""] * self.size,
        }

    def get_state(self):
        return self.number

    def set_state(self, state):
        self.number = state


def reader():
    encoder = {"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    encoder |= {"intermediate_size": 96, "image_size": SIDE, "patch_size": 4, "num_channels": 1}
    encoder |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.15}
    decoder = {"model_type": "gpt2", "n_embd": 48, "n_layer": 1, "n_head": 4, "n_positions": 8, "vocab_size": 13}
    decoder |= {"is_decoder": True, "add_cross_attention": True, "bos_token_id": 0, "eos_token_id": END}
    decoder |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.15}
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": END, "decoder_start_token_id": 0}
    return FlaxVisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_dict({"encoder": encoder, "decoder": decoder} | tokens)
    )


def test_a_run_learns_to_read_digits(tmp_path):
    unseen = next(Digits(200, seed=1))
    model = reader()
    steps = compiled.jit_steps(model)
    request = model.generation_request(200, max_new_tokens=3)

    def exact_match(params, step):
        ids = steps.generate(params, unseen["pixel_values"], request.rows, request.numbers, request.plan).ids_RL
        right = (np.asarray(ids)[:, 1:3] == unseen["labels"]).all(axis=1)
        return {"exact_match": float(right.mean())}

    before = exact_match(compiled.parameters(model), 0)["exact_match"]
    config = TrainConfig(
        output=str(tmp_path),
        steps=250,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(warmup_steps=20),
        average=AverageConfig(decay=0.9),
        parallel=ParallelConfig(data=1),
        evaluation=EvaluationConfig(every=125, metric="exact_match", mode="max"),
    )
    trainer = Trainer(config, model, Digits(), evaluate=exact_match)
    assert trainer.fit() == "done"
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    results = [record["evaluation"]["exact_match"] for record in records if "evaluation" in record]
    assert before == 0
    assert len(results) == 2
    assert results[-1] > 0.8
    read = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path / "model")
    assert exact_match(compiled.parameters(read), 250)["exact_match"] == results[-1]
    assert exact_match(compiled.parameters(trainer.fill_model()), 250)["exact_match"] == results[-1]
    best = json.loads((tmp_path / "checkpoints" / "250" / "metrics" / "metrics").read_text())
    assert best == {"exact_match": results[-1]}


def config(folder, **fields):
    fields = {"steps": 4, "parallel": ParallelConfig(data=1), "checkpoint": CheckpointConfig(every=2)} | fields
    return TrainConfig(output=str(folder), **fields)


class Poisoned(Synthetic):
    """Batches from `first` on have a pixel that is not a number."""

    first = 3

    def __next__(self):
        batch = super().__next__()
        if self.number >= self.first:
            batch["pixel_values"][:] = np.nan
        return batch


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    model = tiny()
    with pytest.raises(TrainingError) as caught:
        Trainer(config(tmp_path), model, Poisoned(model.config)).fit()
    assert str(caught.value).startswith("step 3: the loss is nan")
    assert "samples: 2/0, 2/1" in str(caught.value)
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '2'}" in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_passed_by_but_not_for_ever(tmp_path, caplog, monkeypatch):
    model = tiny()
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    settings = config(tmp_path, steps=9, loss=LossConfig(not_finite="skip"), checkpoint=CheckpointConfig(every=100))
    with caplog.at_level(logging.WARNING, "ved"), pytest.raises(TrainingError, match=r"step 5.*no checkpoint yet"):
        Trainer(settings, model, Poisoned(model.config)).fit()
    assert "step 3: the loss is nan" in caplog.text
    assert "passed by" in caplog.text


def test_batches_that_end_end_the_run(tmp_path):
    class Three(Synthetic):
        def __next__(self):
            if self.number == 3:
                raise StopIteration
            return super().__next__()

    model = tiny()
    results = []

    def evaluate(params, step):
        results.append(step)
        assert params["decoder"]["norm"]["scale"].shape == (24,)
        return {"cer": 0.5}

    settings = config(
        tmp_path,
        steps=5,
        evaluation=EvaluationConfig(every=2),
        checkpoint=CheckpointConfig(every=2, export_every=2),
        parallel=ParallelConfig(data=1, fsdp=2),
    )
    trainer = Trainer(settings, model, Three(model.config), evaluate=evaluate, processor=READER)
    assert trainer.step_flops() is None
    assert trainer.fit() == "done"
    assert trainer.step_flops() == update_flops(settings, tiny(), (1, 35, 35), 6)
    assert results == [2, 3]
    assert {file.name for file in (tmp_path / "exports" / "2").iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert (tmp_path / "model" / "preprocessor_config.json").read_bytes() == (
        READER / "preprocessor_config.json"
    ).read_bytes()
    # Started again, there is nothing left to do.
    again = tiny()
    assert Trainer(settings, again, Three(again.config), processor=READER).fit() == "done"


def test_a_file_asks_for_an_export(tmp_path):
    request = tmp_path / "export"
    seen = []

    class Asking(Synthetic):
        def __next__(self):
            seen.append(request.exists())
            if self.number in (2, 5):
                request.touch()
            return super().__next__()

    model = tiny()
    settings = config(tmp_path, steps=6, checkpoint=CheckpointConfig(every=100))
    trainer = Trainer(settings, model, Asking(model.config), processor=READER)
    trainer.export_request.every = 0
    trainer.fit()
    # Asked for with step 3, which is looked at when step 4 has been begun. The last is answered by the model itself.
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["4"]
    assert seen == [False, False, False, True, False, False]
    assert not request.exists()
    assert {file.name for file in (tmp_path / "exports" / "4").iterdir()} >= {"config.json", "tokenizer.json"}
    folders = (tmp_path / "exports" / "4", tmp_path / "model")
    found, last = (state.arrays(FlaxVisionEncoderDecoderModel.from_pretrained(path)) for path in folders)
    assert all((found[name] != last[name]).any() for name in ("decoder.norm.scale", "encoder.norm.scale"))


def test_an_export_is_asked_for_once_and_looked_for_now_and_then(tmp_path):
    now = 0.0
    request = ExportRequest(tmp_path / "export", every=5.0, clock=lambda: now)
    assert not request.made()
    request.file.touch()
    assert not request.made()
    now = 5.0
    assert request.made()
    now = 20.0
    assert not request.made()  # until it is answered
    request.answered()
    assert not request.file.exists()
    request.file.touch()
    assert request.made()
    request.file.unlink()
    request.answered()  # gone already
    request.file.mkdir()
    now = 40.0
    assert not request.made()


def test_a_metric_that_is_not_measured_is_named(tmp_path):
    model = tiny()
    settings = config(tmp_path, evaluation=EvaluationConfig(every=1, metric="wer"))
    trainer = Trainer(settings, model, Synthetic(model.config), evaluate=lambda params, step: {"cer": 0.5})
    with pytest.raises(ConfigError, match=r"evaluation\.metric = 'wer' should be one of cer"):
        trainer._evaluate()


def test_the_last_step_can_be_the_best(tmp_path):
    model = tiny()
    checkpoint = CheckpointConfig(every=2, keep=1)  # the last step's is due, its evaluation is not
    settings = config(tmp_path, checkpoint=checkpoint, evaluation=EvaluationConfig(every=3, metric="cer"))
    trainer = Trainer(settings, model, Synthetic(model.config), evaluate=lambda params, step: {"cer": 1 / step})
    assert trainer.fit() == "done"
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir() if entry.name.isdigit()] == ["4"]


@pytest.mark.oracle
@pytest.mark.slow
def test_what_is_exported_is_read_by_transformers_and_torch(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    from ved_torch import VisionEncoderDecoderModel

    model = tiny()
    Trainer(config(tmp_path, steps=1), model, Synthetic(model.config), processor=READER).fit()
    batch = inputs(model.config.to_dict())
    pixels, labels = batch.pixel_values, batch.labels
    ours = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path / "model")
    expected = float(ours(pixels, labels=labels).loss)
    for kind in (transformers.VisionEncoderDecoderModel, VisionEncoderDecoderModel):
        loaded = kind.from_pretrained(str(tmp_path / "model")).eval()
        with torch.no_grad():
            found = loaded(pixel_values=torch.tensor(pixels), labels=torch.tensor(labels)).loss
        assert float(found) == pytest.approx(expected, abs=1e-5)


def test_lines_are_there_once(tmp_path):
    file = tmp_path / "lines.jsonl"
    lines = JsonLines(file)
    for step in (1, 2, 3):
        lines.on_step(step, {"loss": 1 / step if step > 1 else float("nan")})
    lines.on_evaluation(3, {"cer": np.float64(0.5).item()})
    lines.close()
    with file.open("a") as torn:
        torn.write('{"step": 4, "lo')
    lines = JsonLines(file, resumed=2)
    lines.on_step(3, {"loss": 0.25})
    lines.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1, "loss": "nan"},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]


def test_a_model_is_empty_while_it_is_trained(tmp_path):
    model = tiny()
    trainer = Trainer(config(tmp_path, steps=1), model, Synthetic(model.config))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(trainer.model.decoder.norm.scale))
    trainer.fill_model()
    np.testing.assert_array_equal(model.decoder.norm.scale[...], state.arrays(tiny())["decoder.norm.scale"])
