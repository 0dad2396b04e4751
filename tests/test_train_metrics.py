"""Metrics against values worked out by hand."""

import math
from typing import Any

import pytest

from ved_core.errors import ConfigError

pytest.importorskip("jiwer")
pytest.importorskip("sacrebleu")

from ved_flax.train.metrics import LOWER_IS_BETTER, METRICS, measure

CIDER = 10 * ((1 + 1) / 4 + (0.5 + 0) / 4) / 2
LONGER = 10 * math.exp(-(2**2) / (2 * 6**2)) * (0.5 + 1 / math.sqrt(5)) / 4 / 2

VALUES: list[tuple[str, list[str], list[list[str]], float]] = [
    ("exact_match", ["a", "b", "c "], [["a"], ["x", "b"], ["c"]], 2 / 3),
    ("cer", ["abcd", "xy"], [["abxd"], ["xyz"]], 2 / 7),
    ("cer", [" a"], [["a"]], 1.0),
    ("cer", ["ab", "ü"], [["xx", "abc"], ["u"]], 2 / 4),  # the nearest of two references
    ("cer", ["abc", "x"], [[""], ["x"]], 3.0),
    ("cer", ["abc"], [[""]], 3.0),
    ("cer", ["", ""], [["ab"], ["cd"]], 1.0),
    ("cer", [""], [[""]], 0.0),
    ("wer", ["one  two three ", "x"], [["one two four"], ["x"]], 1 / 4),
    ("wer", ["a b"], [[""]], 2.0),
    ("wer", [""], [[""]], 0.0),
    ("bleu", ["the cat sat on the mat"], [["the cat sat on the mat"]], 100.0),
    ("bleu", ["a b c d e", "w x y z"], [["no", "a b c d e"], ["w x y z"]], 100.0),
    ("bleu", ["the cat sat on a"], [["the cat sat on a mat"]], 100 * math.exp(1 - 6 / 5)),
    ("bleu", [""], [["a"]], 0.0),
    ("bleu", ["a"], [[""]], 0.0),
    ("chrf", ["abc def"], [["abc def"]], 100.0),
    ("chrf", ["xyz"], [["abc"]], 0.0),
    ("chrf", [""], [[""]], 0.0),
    ("rouge_l", ["A cat was on the mat, red!"], [["the cat sat on the mat"]], 2 * 4 / (7 + 6)),
    ("rouge_l", ["b a", "x"], [["a b", "b a"], ["y"]], 0.5),
    ("rouge_l", ["слово раз"], [["Слово два"]], 0.5),
    ("rouge_l", ["", "a", ""], [["a"], [""], ["!"]], 1 / 3),
    ("cider", ["a b", "c x"], [["a b"], ["c d"]], CIDER),
    ("cider", ["A, b!", "c x"], [["a b"], ["c d"]], CIDER),
    ("cider", ["a b a b", ""], [["a b"], ["c d"]], LONGER),
    ("cider", ["a b", "c x"], [["a b", "e f"], ["c d"]], 10 * ((1 + 1) / 4 / 2 + 0.5 / 4) / 2),
    ("cider", ["same", "same"], [["same"], ["same"]], 0.0),  # what is in all references tells nothing
    ("cider", ["", ""], [[""], [""]], 0.0),
]


@pytest.mark.parametrize(("name", "predictions", "references", "expected"), VALUES)
def test_values(name: str, predictions: list[str], references: list[list[str]], expected: float) -> None:
    value = measure([name], predictions, references)
    assert value == {name: pytest.approx(expected, abs=1e-9)}
    assert type(value[name]) is float


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_best_for_what_is_right(name: str) -> None:
    right = ["one two three four five", "six seven eight nine ten", "what is this here now"]
    wrong = [text.replace("e", "x") for text in right]
    references = [[text] for text in right]
    best, worse = (measure([name], texts, references)[name] for texts in (right, wrong))
    assert best < worse if name in LOWER_IS_BETTER else best > worse
    assert measure([name], [], []) == {name: 0.0}


@pytest.mark.parametrize(("predictions", "references"), [(["a"], []), (["a"], [[]])])
def test_predictions_without_references_are_refused(predictions: Any, references: Any) -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        measure(["cer"], predictions, references)


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match="no metric 'accuracy'; there are exact_match, cer"):
        measure(["cer", "accuracy"], [], [])
