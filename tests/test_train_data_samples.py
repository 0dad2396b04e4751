"""Training data: what becomes of each sample. Bad ones, labels, augmentation, and the options of all that."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("grain")
pytest.importorskip("datasets")

from ved_core.errors import ConfigError, DataError
from ved_core.processing import Processor
from ved_flax.train.data import DataConfig
from ved_flax.train.data.augment import augmented
from ved_flax.train.data.labels import Labels

# Bad samples ---------------------------------------------------------------------------------------------------------


def test_bad_samples_are_named_masked_and_counted(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = train(shuffle=False), train(bad=(1, 6), shuffle=False, max_bad_share=0.2)
    with caplog.at_level(logging.WARNING, logger="ved"):
        for _ in range(5):  # two epochs
            one, other = next(good), next(bad)
            assert one["ids"] == other["ids"]
            kept = np.array([name not in ("1", "6") for name in other["ids"]])
            assert other["weight"].tolist() == kept.tolist()
            assert (other["labels"][~kept] == -100).all()
            assert np.array_equal(one["pixel_values"][kept], other["pixel_values"][kept])
            assert np.array_equal(one["labels"][kept], other["labels"][kept])
    assert [record.getMessage() for record in caplog.records] == [
        "bad sample, left out: sample 1: torn",
        "bad sample, left out: sample 6: torn",
    ]
    assert bad.counts == {"bad_samples": 2, "cut_texts": 0}


def test_more_bad_samples_than_their_share_stop_the_job(train: Any) -> None:
    batches = train(bad=(1, 6, 7), shuffle=False, max_bad_share=0.2)
    next(batches)
    with pytest.raises(DataError, match=r"3 bad samples in epoch 0, where data.max_bad_share = 0.2 allows 2.*sample 7"):
        next(batches)
    state = batches.get_state()
    assert state["bad"] == 3


def test_the_count_of_bad_samples_is_resumed(train: Any) -> None:
    first = train(bad=(1, 6, 7), shuffle=False, max_bad_share=0.2)
    next(first)
    second = train(bad=(1, 6, 7), shuffle=False, max_bad_share=0.2)
    second.set_state(first.get_state())
    with pytest.raises(DataError, match="3 bad samples"):
        next(second)


# Labels --------------------------------------------------------------------------------------------------------------


def test_labels_end_with_the_end_token_and_begin_without_a_start(processor: Processor) -> None:
    labels = Labels(processor.tokenizer, DataConfig(max_length=6))
    ids, cut = labels("one two")
    expected = [
        *processor.tokenizer("one two", add_special_tokens=False)["input_ids"],
        processor.tokenizer.eos_token_id,
    ]
    assert ids.tolist() == expected + [-100] * (6 - len(expected))
    assert not cut
    assert labels("")[0].tolist() == [processor.tokenizer.eos_token_id] + [-100] * 5


def test_long_texts_are_cut_and_counted(train: Any, processor: Processor, caplog: pytest.LogCaptureFixture) -> None:
    batches = train(max_length=1, shuffle=False)
    with caplog.at_level(logging.WARNING, logger="ved"):
        assert next(batches)["labels"].tolist() == [[processor.tokenizer.eos_token_id]] * 4
    assert batches.counts["cut_texts"] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "0: its text is longer than data.max_length = 1, and cut"
    ]
    whole = Labels(processor.tokenizer, DataConfig(max_length=20, special_tokens="none"))("one two three")[0]
    ids, cut = Labels(processor.tokenizer, DataConfig(max_length=2, special_tokens="none"))("one two three")
    assert ids.tolist() == whole[:2].tolist()
    assert cut


class Bert:
    """A tokenizer that encloses texts, and has no end token of its own."""

    eos_token_id, sep_token_id = None, 3

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [2, *ids, 3] if add_special_tokens else ids}


def test_other_tokenizers_and_other_special_tokens() -> None:
    def ids(kind: str, text: str = "ab", **options: Any) -> list[int]:
        return Labels(Bert(), DataConfig(max_length=4, special_tokens=kind), **options)(text)[0].tolist()

    assert ids("end") == [97, 98, 3, -100]
    assert ids("end", end_token_id=9) == [97, 98, 9, -100]
    assert ids("tokenizer") == [2, 97, 98, 3]
    assert ids("tokenizer", "abcd") == [2, 97, 98, 3]
    assert ids("none") == [97, 98, -100, -100]
    with pytest.raises(DataError, match="token 98 of 'ab' is outside of the decoder's vocabulary of 98"):
        ids("none", vocab_size=98)
    Bert.sep_token_id = None
    try:
        with pytest.raises(ConfigError, match="end token"):
            ids("end")
        assert ids("none") == [97, 98, -100, -100]
    finally:
        Bert.sep_token_id = 3


# Augmentation --------------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_seed_epoch_and_sample_only(train: Any) -> None:
    def pixels(**options: Any) -> np.ndarray:
        """Of two epochs of four samples."""
        batches = train(4, shuffle=False, **options)
        return np.stack([next(batches)["pixel_values"] for _ in range(2)])

    plain, one = pixels(), pixels(augment=1.0)
    assert np.array_equal(one, pixels(augment=1.0, batch_size=4))
    assert (one != plain).any(axis=(2, 3, 4)).all()
    assert (one[0] != one[1]).any(axis=(1, 2, 3)).all()  # epochs
    assert (one != pixels(augment=1.0, seed=1)).any(axis=(2, 3, 4)).all()
    some = (pixels(augment=0.5) != plain).any(axis=(2, 3, 4))
    assert 0 < some.sum() < some.size
    still = dict.fromkeys((f"augment_{x}" for x in ("rotation", "shear", "scale", "blur", "contrast", "noise")), 0.0)
    assert np.array_equal(pixels(augment=1.0, **still), plain)


def test_augmentation_cuts_nothing_off() -> None:
    page = np.full((20, 200, 3), 250, np.uint8)
    for row, column in ((2, 2), (2, 194), (14, 2), (14, 194)):
        page[row : row + 4, column : column + 4] = 0
    config = DataConfig(augment_contrast=0.0, augment_noise=0.0, augment_blur=0.0, augment_rotation=5.0)
    for seed in range(20):
        image = augmented(Image.fromarray(page), np.random.default_rng(seed), config)
        dark = 250.0 - np.asarray(image, np.float32)[..., 0]
        size = image.width * image.height / (200 * 20)
        assert 0.7 < dark.sum() / (250 * 64) < 1.3
        assert dark[:, 0].max() < 60 or size > 1  # the border has the page's colour


# Config --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_length", 0), ("max_bad_share", 1.5), ("workers", -1), ("seed", 2**32), ("shuffle", 1)),
        *(("source", None), ("special_tokens", "both"), ("augment", float("nan")), ("split", ""), ("prefetch", True)),
    ],
)
def test_config_values_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name} = .* should be"):
        DataConfig(**{name: value})


def test_config_fields_are_documented_and_checked() -> None:
    from ved_flax.train.data.config import _CHECKS

    names = {field.name for field in dataclasses.fields(DataConfig) if field.metadata["doc"]}
    assert names == set(_CHECKS)
