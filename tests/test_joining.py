"""Calls of generate() that are computed together: each gives what it gives alone."""

import numpy as np
import pytest

from tests.cases import DIGITS, READER
from ved_core.errors import GenerationError
from ved_core.generation.joining import joined, like, numbered, signature

IMAGES = sorted(DIGITS.glob("*.png"))[:3]
STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "processors": {"repetition_penalty": 1.3, "min_new_tokens": 3, "forced_eos_token_id": 2},
}


@pytest.fixture(scope="module", params=["torch", pytest.param("flax", marks=pytest.mark.slow)])
def pipeline(request):
    pytest.importorskip(request.param)
    return __import__(f"ved_{request.param}").ImageToText.from_pretrained(READER)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_gives_what_it_gives_alone(pipeline, strategy):
    options = STRATEGIES[strategy]
    served = pipeline.request(**options, max_new_tokens=8)
    lengths = (8, 2, 4)
    requests = [like(pipeline.request(**options, max_new_tokens=n), served) for n in lengths]
    assert len({signature(request) for request in requests}) == 1
    together = joined(requests, 4)
    assert together.rows.live_B.tolist() == [True, True, True, False]
    pixels = pipeline.processor.pixel_values([*IMAGES, IMAGES[0]])
    for image, length, reading in zip(IMAGES, lengths, pipeline.read_request(pixels, together), strict=False):
        alone = pipeline(image, **options, max_new_tokens=length)
        assert reading.text == alone.text
        assert reading.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert [other.text for other in reading.alternatives] == [other.text for other in alone.alternatives]


def test_other_numbers_are_another_batch_and_other_shapes_another_program(pipeline):
    served = pipeline.request(do_sample=True, temperature=0.5)
    warmer = like(pipeline.request(do_sample=True, temperature=2.0), served)
    assert signature(warmer) != signature(served)
    for options, message in (
        ({}, "do_sample"),
        ({"do_sample": True}, "temperature"),
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.5}, "top_p = 0.5"),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3}, "top_k = 3"),
        ({"do_sample": True, "temperature": 0.5, "num_return_sequences": 2}, "num_return_sequences = 2"),
        ({"do_sample": True, "temperature": 0.5, "prompt": "two one"}, "prompt"),
        ({"do_sample": True, "temperature": 0.5, "max_new_tokens": 31}, "are compiled here"),
    ):
        with pytest.raises(GenerationError, match=message):
            like(pipeline.request(**options), served)


def test_rows_can_be_counted_anew(pipeline):
    request = joined([numbered(pipeline.request(), place) for place in (5, 7)], 2)
    assert request.rows.row_B.tolist() == [5, 7]
    assert numbered(request, 0).rows.row_B.tolist() == [0, 1]
    with pytest.raises(GenerationError, match="batch of 1"):
        joined([request], 1)


def test_a_request_is_for_its_images_and_has_all_options(pipeline):
    pixels = np.zeros((2, 3, 48, 48), np.float32)
    with pytest.raises(GenerationError, match="for 1 images, not for 2"):
        pipeline.model.generate(pixels, request=pipeline.request())
    with pytest.raises(GenerationError, match="num_beams cannot go with a request"):
        pipeline.model.generate(pixels[:1], request=pipeline.request(), num_beams=2)
