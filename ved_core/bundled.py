"""The model that ships with the library."""

from pathlib import Path

READER = Path(__file__).parent / "assets" / "lines"
"""Checkpoint folder of the reader that `ved read` uses when no model is named: one printed line of text an image.

Its recipe and its error rates are in `examples/line_reader`.
"""
