"""The model that ships with the library."""

from pathlib import Path

READER = Path(__file__).parent / "assets" / "digits"
"""Checkpoint folder of the reader that `ved read` uses when no model is named: handwritten digits to English words."""
