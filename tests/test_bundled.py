"""The reader that `ved read` uses when no model is named."""

import csv
import importlib

import pytest

from tests.cases import ROOT
from ved_core.bundled import READER

EXAMPLES = ROOT / "examples"
with (EXAMPLES / "lines.csv").open(encoding="utf-8") as file:
    LINES = {EXAMPLES / row["image"]: row["text"] for row in csv.DictReader(file)}


def readings(framework):
    """What a framework reads on the images of `examples/`."""
    pytest.importorskip(framework)
    reader = importlib.import_module(f"ved_{framework}").ImageToText.from_pretrained(READER)
    return reader(list(LINES), batch_size=len(LINES))


def test_it_is_small():
    assert sum(path.stat().st_size for path in READER.iterdir()) <= 8_000_000


def test_it_reads_the_examples_in_both_frameworks():
    """Lines in fonts that it was not trained on."""
    found = readings("flax")
    jiwer = pytest.importorskip("jiwer")
    assert jiwer.cer(list(LINES.values()), [reading.text for reading in found]) <= 0.05
    for ours, theirs in zip(found, readings("torch"), strict=True):
        assert ours.text == theirs.text
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
