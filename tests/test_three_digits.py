"""The example of fine-tuning: what it draws, and that the reader learns from it what it could not read."""

import importlib.util
import json

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("matplotlib")
from tests.cases import READER, ROOT
from ved_core.processing import Processor
from ved_flax.train import command

FOLDER = ROOT / "examples" / "three_digits"


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_depend_on_part_and_index_alone(draw):
    processor = Processor.from_pretrained(READER)
    images, texts = zip(*(draw.number(draw.PARTS["train"], index) for index in range(20)), strict=True)
    again, same = draw.number(draw.PARTS["train"], 7)
    assert (again.tobytes(), same) == (images[7].tobytes(), texts[7])
    assert draw.number(draw.PARTS["test"], 7)[1] != texts[7]
    assert len(set(texts)) == 20
    assert {image.size for image in images} == {(48, 48)}
    assert all(np.asarray(image).min() < 120 < 200 < np.asarray(image).mean() for image in images)  # dark on light
    for text in texts:
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.decode([ids])[0].strip() == text
    assert not set(draw.FACES) & set(draw.HELD_OUT)


@pytest.mark.slow
def test_fine_tuning_improves(draw, tmp_path, capsys):
    for name, images in (("train", 800), ("test", 50)):
        draw.write(draw.PARTS[name]._replace(images=images), tmp_path / name)
    settings = [f"output={tmp_path / 'run'}", f"model.pretrained={READER}", "steps=120", "schedule.warmup_steps=10"]
    settings += [f"data.source={tmp_path / 'train'}", f"data.evaluation_source={tmp_path / 'test'}"]
    settings += [
        "evaluation={at_start: true, every: 120, batch_size: 50, options: {max_new_tokens: 8}}",
        "parallel.data=1",
        "report={pictures: false, tensorboard: false}",
    ]
    assert command.main(["--config", str(FOLDER / "three_digits.yaml"), *settings]) == command.DONE
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = ((line["step"], line["evaluation"]) for line in lines if "evaluation" in line)
    assert (before[0], after[0]) == (0, 120)
    assert after[1]["exact_match"] > before[1]["exact_match"] + 0.2
    assert after[1]["cer"] < before[1]["cer"] / 2
    assert "step 0: exact_match" in capsys.readouterr().err
