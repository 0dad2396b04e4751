"""The recipe of the reader of printed lines: what it draws, its tokens, its checkpoint, its evaluation, a short run."""

import fnmatch
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("wordfreq")
pytest.importorskip("rendercv_fonts")
from tests.cases import ROOT
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.processing import Processor
from ved_flax.train import settings
from ved_flax.train.config import TrainConfig
from ved_flax.train.data.array_record import write_array_record
from ved_flax.train.evaluation import Prediction
from ved_flax.train.run import prepared

RECIPE = ROOT / "examples" / "line_reader"
sys.path.insert(0, str(RECIPE))
import evaluate as evaluation  # noqa: E402
import faces  # noqa: E402
import make_checkpoint  # noqa: E402
import synthesis  # noqa: E402
import texts  # noqa: E402

TRAIN, HELD_OUT = synthesis.PARTS["train"], synthesis.PARTS["held_out"]


def test_enough_fonts_that_are_all_there_and_held_out_ones_apart():
    assert len(faces.SEEN) >= 12
    assert not {face for family in faces.SEEN.values() for face in family} & {
        face for family in faces.HELD_OUT.values() for face in family
    }
    digests = set()
    for face in [face for family in (faces.SEEN | faces.HELD_OUT).values() for face in family]:
        font = faces.load(face, 32)
        # A character that a face lacks is drawn as its box, which all the lacking ones share.
        shapes = [bytes(font.getmask(character)) for character in texts.ALPHABET]
        assert len(set(shapes)) > 90, face
        digests.add(b"".join(shapes))
    assert len(digests) == sum(map(len, (faces.SEEN | faces.HELD_OUT).values()))  # no face under two names


def test_a_missing_font_names_what_to_install():
    with pytest.raises(FileNotFoundError, match=r"rendercv-fonts.*pip install"):
        faces.path_of(("rendercv_fonts", "Lato", "Lato-Huge.ttf"))
    with pytest.raises(FileNotFoundError, match=r"no-such-fonts.*pip install"):
        faces.path_of(("no_such_fonts", "", "x.ttf"))


def test_texts_are_of_the_alphabet_and_of_every_kind():
    rng, draw = np.random.default_rng(0), texts.Texts(held_out=False)
    found = [draw(rng) for _ in range(3000)]
    assert all(0 < len(text) <= texts.LONGEST and " ".join(text.split(" ")) == text.strip() for text in found)
    assert set("".join(found)) == set(texts.ALPHABET)
    assert len(set(found)) > 2700


def test_words_held_out_are_in_no_training_line():
    seen, held_out = (set(texts.vocabulary(half)[0]) for half in (False, True))
    assert len(held_out) > 1000
    assert len(seen & held_out) == texts._SHARED


def test_a_line_depends_on_its_part_and_number_alone():
    first = [synthesis.sample(TRAIN, index) for index in (7, 8)]
    assert [synthesis.sample(TRAIN, index) for index in (8, 7)] == first[::-1]
    assert synthesis.sample(TRAIN._replace(seed=9), 7) != first[0]
    assert all(len(synthesis.line(synthesis.PARTS["letters"], index)[1]) <= 4 for index in range(40))
    families = {synthesis.line(HELD_OUT, index)[2] for index in range(40)}
    assert families == set(faces.HELD_OUT)


@pytest.mark.parametrize("text", ["Wjgpq|", ".", "i", "WWWWWWWWWWWWWWWWWWWWWWWWWWWW", "fffj"])
def test_a_text_is_drawn_whole_and_large_enough(text):
    """Nothing of it touches the border: ink, by the difference from a plain ground, keeps off the outermost pixels."""

    class Middle(np.random.Generator):
        """Draws what makes the line plain, and its size and margins by chance."""

        def random(self, *args, **kwargs):
            return 0.99 if not args else super().random(*args, **kwargs)

    for seed in range(12):
        for face in (faces.SEEN["STIX"][3], faces.SEEN["Poppins"][1], faces.HELD_OUT["Ubuntu"][2]):
            image, drawn = synthesis.draw(text, face, Middle(np.random.PCG64(seed)))
            pixels = np.asarray(image, np.float32)
            ink = np.abs(pixels - np.median(pixels)) > 40
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            assert rows.size
            assert not ink[:, [0, -1]].any(), (seed, face)
            assert not ink[[0, -1]].any(), (seed, face)
            assert text.startswith(drawn)
            assert image.width <= (synthesis.WIDEST + 0.5) * image.height
            assert 18 <= image.height <= 110
            if text == "Wjgpq|":
                assert drawn == text
                assert len(rows) * 32 / image.height > 12  # of the canvas' 32 rows
                assert columns[-1] - columns[0] > image.width / 2


def test_each_character_is_a_token_and_comes_back():
    processor = Processor.from_pretrained(RECIPE / "checkpoint")
    ids = processor.tokenizer(texts.ALPHABET)["input_ids"]
    assert len(ids) == len(set(ids)) == len(texts.ALPHABET)
    for text in (texts.ALPHABET, "a  b", "don't , stop .", " x"):
        tokens = processor.tokenizer(text)["input_ids"]
        assert len(tokens) == len(text)
        assert processor.decode(np.array([[0, *tokens, 2, 1]])) == [text]


def test_the_checkpoint_folder_is_what_its_maker_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_checkpoint.py", str(tmp_path)])
    make_checkpoint.main()
    for path in (RECIPE / "checkpoint").iterdir():
        assert (tmp_path / path.name).read_text() == path.read_text(), path.name
    config = VisionEncoderDecoderConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert config.decoder.vocab_size == len(texts.ALPHABET) + 3
    assert config.decoder.n_positions > texts.LONGEST + 1


def test_a_line_keeps_its_shape_on_the_canvas():
    processor = Processor.from_pretrained(RECIPE / "checkpoint")
    pixels = processor.pixel_values([Image.new("L", (100, 40), 255)])
    assert pixels.shape == (1, 3, make_checkpoint.HEIGHT, make_checkpoint.WIDTH)
    columns = np.flatnonzero((pixels[0, 0] > 0).any(0))  # the rest is 0
    assert columns[0] == 0
    assert columns[-1] == pytest.approx(79, abs=1)


def test_errors_are_counted_where_they_are():
    assert list(evaluation.pairs("cat", "cut")) == [("c", "c"), ("a", "u"), ("t", "t")]
    assert list(evaluation.pairs("ab", "b")) == [("a", evaluation.NOTHING), ("b", "b")]
    assert list(evaluation.pairs("a", "a!")) == [("a", "a"), (evaluation.NOTHING, "!")]
    found = [Prediction("0 Lato", ("l|0",), "I|O", 0.5), Prediction("1 STIX", ("ok",), "ok", 1.0)]
    assert evaluation.rates(found) == {"cer": pytest.approx(2 / 5), "exact_match": 0.5, "lines": 2}
    assert evaluation.by_family(found)["STIX"]["cer"] == 0
    text = evaluation.report({"fonts seen": found}, "Title")
    assert "| `l` | `I` | 1 |" in text
    assert "| digits | 1 | 100.0% |" in text


@pytest.mark.parametrize("name", ["first_steps", "line_reader", "more_lines"])
def test_the_runs_follow_each_other_on_what_is_drawn(name):
    config = settings.read(TrainConfig, RECIPE / f"{name}.yaml", [])
    assert config.output == f"runs/{name}"
    drawn = {f"runs/lines/{part}.array_record" for part in synthesis.PARTS}
    assert fnmatch.filter(drawn, config.data.source)
    assert config.model.config or config.model.pretrained in ("runs/first_steps/model", "runs/line_reader/model")


@pytest.mark.slow
def test_a_short_run_learns_and_is_measured(tmp_path, monkeypatch):
    lines = [synthesis.sample(TRAIN, index) for index in range(16)]
    for name in ("seen", "held_out"):
        write_array_record(lines[:4], tmp_path / f"{name}.array_record")
    write_array_record(lines, tmp_path / "train.array_record")
    monkeypatch.chdir(ROOT)
    config = settings.read(
        TrainConfig,
        RECIPE / "line_reader.yaml",
        [
            f"output={tmp_path / 'run'}",
            f"data.source={tmp_path / 'train.array_record'}",
            "steps=12",
            "batch_size=8",
            "schedule.warmup_steps=2",
            "evaluation.every=null",
            "logging.every=1",
            "parallel.data=1",
            "model.pretrained=null",
            "model.config=examples/line_reader/checkpoint",
            "model.overrides={encoder: {num_hidden_layers: 1}, decoder: {n_layer: 1}}",
        ],
    )
    with prepared(config) as trainer:
        assert trainer.fit() == "done"
    entries = [json.loads(entry) for entry in Path(tmp_path, "run/metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    arguments = ["evaluate.py", str(tmp_path / "run/model"), str(tmp_path), str(tmp_path / "out"), "--batch", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    evaluation.main()
    assert json.loads((tmp_path / "out/rates.json").read_text())["fonts seen"]["lines"] == 4
    with Image.open(tmp_path / "out/confusion.png") as image:
        assert image.width > 500
