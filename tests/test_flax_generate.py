"""Greedy decoding in Flax: the trained reader, options, and where they come from."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.cases import DIGITS, READER, inputs
from tests.flax_models import perturbed
from ved_core.errors import GenerationError
from ved_core.processing import Processor
from ved_flax import FlaxVisionEncoderDecoderModel, ImageToText
from ved_flax.generation.strategies import likeliest

pytest.importorskip("flax")
SAMPLES = json.loads((DIGITS / "expected.json").read_text())["samples"]
PATHS = [DIGITS / sample["image"].removeprefix("images/") for sample in SAMPLES]


@pytest.fixture(scope="module")
def reader():
    return FlaxVisionEncoderDecoderModel.from_pretrained(READER)


@pytest.fixture(scope="module")
def pixels():
    return Processor.from_pretrained(READER).pixel_values(PATHS)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(READER, tmp_path / "reader")


def edit(path, **fields):
    values = json.loads(path.read_text()) if path.exists() else {}
    values.update(fields)
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "absent"}))


def trimmed(ids, pad=1):
    return [[int(i) for i in row if i != pad] for row in ids]


def test_reader_reads_what_was_expected(reader, pixels):
    ids = reader.generate(pixels)
    assert trimmed(ids) == [sample["greedy_ids"] for sample in SAMPLES]
    # As transformers trims: no column behind the longest row's end token.
    assert ids.shape[1] == max(len(sample["greedy_ids"]) for sample in SAMPLES)
    assert (Processor.from_pretrained(READER).decode(np.asarray(ids))) == [s["greedy_text"] for s in SAMPLES]


def test_start_token_that_is_also_the_end_token_does_not_end(reader, pixels):
    # TrOCR's case. Token 50 ("two") first, so that something follows.
    ids = reader.generate(pixels[:2], decoder_start_token_id=2, max_new_tokens=4)
    assert ids.shape[1] > 2
    assert np.all(ids[:, 0] == 2)


def test_without_an_end_token_only_the_length_ends(reader, pixels):
    model = perturbed("vit", "gpt2", eos_token_id=None)
    model.config.decoder.eos_token_id = None
    assert model.generate(inputs(model.config.to_dict()).pixel_values, max_new_tokens=7).shape == (3, 8)


def test_several_end_tokens(reader, pixels):
    first = np.asarray(reader.generate(pixels[:1]))[0, 1]
    ids = reader.generate(pixels[:1], eos_token_id=[2, int(first)])
    assert ids.tolist() == [[0, int(first)]]


@pytest.mark.parametrize(
    ("generation", "top", "decoder", "call", "length"),
    [
        ({"max_length": 3}, {}, {}, {}, 3),
        ({"max_length": 3}, {"max_length": 2}, {}, {}, 3),
        ({"max_length": 3}, {}, {}, {"max_length": 4}, 4),
        ({"max_length": 3}, {}, {}, {"max_new_tokens": 1}, 2),
        ({"max_length": "absent"}, {"max_length": 3}, {"max_length": 2}, {}, 3),
        ({"max_length": "absent"}, {}, {"max_length": 2}, {}, 2),
        ({"max_new_tokens": 1, "max_length": "absent"}, {}, {}, {}, 2),
    ],
)
def test_lengths_are_looked_up_in_order(folder, generation, top, decoder, call, length):
    edit(folder / "generation_config.json", **generation)
    values = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", **top, decoder=values["decoder"] | decoder)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    assert model.generation_request(1, **call).plan.length == length


def test_twenty_new_tokens_where_no_length_is_set(folder):
    edit(folder / "generation_config.json", max_length="absent", eos_token_id="absent")
    edit(folder / "config.json", eos_token_id=None)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    model.config.decoder.eos_token_id = None
    assert model.generate(np.zeros((1, 3, 48, 48), np.float32)).shape == (1, 21)


def test_special_tokens_are_looked_up_in_order(folder, pixels):
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", decoder_start_token_id="absent", eos_token_id="absent", pad_token_id="absent")
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    # The decoder's part: bos 0 begins, eos 2 ends, pad 1 fills.
    assert trimmed(model.generate(pixels, max_new_tokens=6)) == [s["greedy_ids"] for s in SAMPLES]
    model.config.decoder_start_token_id = 2
    assert np.all(model.generate(pixels[:2])[:, 0] == 2)
    model.generation_config.decoder_start_token_id = 0
    assert np.all(model.generate(pixels[:2])[:, 0] == 0)


def test_an_assignment_wins_over_the_files(reader, folder, pixels):
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    model.config.decoder_start_token_id = 2
    model.config.max_length = 3
    ids = model.generate(pixels[:2])
    assert ids.shape == (2, 3)
    assert np.all(ids[:, 0] == 2)
    model.save_pretrained(folder)
    written = json.loads((folder / "generation_config.json").read_text())
    assert (written["decoder_start_token_id"], written["max_length"]) == (2, 3)


def test_padding_falls_back_to_the_end_token(folder, pixels):
    edit(folder / "generation_config.json", pad_token_id="absent")
    edit(folder / "config.json", pad_token_id=None)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    model.config.decoder.pad_token_id = None
    ids = np.asarray(model.generate(pixels[:2]))
    assert ids[0].tolist() == [0, 25, 50, 2, 2]


def test_a_missing_start_token_raises_when_it_is_needed():
    model = perturbed("vit", "gpt2", decoder_start_token_id=None, bos_token_id=None)
    model.config.decoder.bos_token_id = None
    pixels = inputs(model.config.to_dict()).pixel_values
    with pytest.raises(GenerationError, match=r"model.config.decoder_start_token_id = "):
        model.generate(pixels)
    model.config.decoder_start_token_id = 3
    assert model.generate(pixels, max_new_tokens=2).shape == (3, 3)


def test_inert_options_pass(reader, pixels):
    expected = reader.generate(pixels[:1])
    options = {
        "num_beams": 1,
        "do_sample": False,
        "temperature": 1.0,
        "repetition_penalty": 1.0,
        "early_stopping": True,
    }
    np.testing.assert_array_equal(reader.generate(pixels[:1], **options, use_cache=True, top_k=None), expected)


@pytest.mark.parametrize("shape", [(0, 3, 48, 48), (3, 48, 48), (1, 1, 48, 48), (1, 3, 32, 32)])
def test_bad_pixels_are_refused(reader, shape):
    with pytest.raises(ValueError, match="pixel_values"):
        reader.generate(np.zeros(shape, np.float32))


def test_training_goes_on_after_generating(reader, pixels, folder):
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    before = model.generate(pixels[:1])
    model.decoder.tokens.embedding[...] = model.decoder.tokens.embedding[...] * 0 + 1
    assert not np.array_equal(model.generate(pixels[:1]), before)


def test_image_to_text(reader, tmp_path):
    pipeline = ImageToText.from_pretrained(READER)
    one = pipeline(PATHS[0])
    assert one.text == "three two"
    assert 0.9 < one.confidence <= 1
    assert pipeline(Image.open(PATHS[0])) == one
    assert pipeline(np.asarray(Image.open(PATHS[0]))).text == "three two"
    assert [r.text for r in pipeline(list(PATHS), batch_size=5)] == [s["greedy_text"] for s in SAMPLES]
    assert pipeline([]) == []
    results = list(pipeline.stream([PATHS[0], tmp_path / "none.png", PATHS[2]], batch_size=2, max_new_tokens=1))
    assert [type(r).__name__ for r in results] == ["Reading", "ImageError", "Reading"]
    assert results[2].text == "eight"
    with pytest.raises(ValueError, match=r"none.png"):
        pipeline([PATHS[0], tmp_path / "none.png"])
    several = pipeline([PATHS[0], PATHS[2]], num_beams=3, num_return_sequences=3)
    assert [(reading.text, len(reading.alternatives)) for reading in several] == [("three two", 2), ("eight seven", 2)]
    assert all(other.text != reading.text for reading in several for other in reading.alternatives)
    pieces = list(pipeline.stream_text(PATHS[0], chunk_size=1))
    assert "".join(pieces) == "three two"
    assert len(pieces) > 1


def test_the_first_of_the_largest_scores_is_taken():
    """As argmax does; a row without any number stays inside the vocabulary."""
    scores = np.random.default_rng(0).standard_normal((2, 3, 50)).round(1).astype(np.float32)
    scores[0, 1] = -np.inf
    np.testing.assert_array_equal(jax.jit(likeliest)(scores), scores.argmax(axis=-1))
    assert likeliest(jnp.full((1, 1, 50), jnp.nan)) < 50
