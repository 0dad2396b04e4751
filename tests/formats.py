"""Checkpoints in every format, for tests of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conversion.formats.safetensors import read, write
from tests import cases
from tests.cases import FIXTURES, READER, WEIGHTS_FILE
from ved_core.digests import FILE as DIGESTS

SOURCES = {"digits": READER} | {pair: FIXTURES / pair for pair in cases.PAIRS}
"""Reference checkpoints, in safetensors."""


def content(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A safetensors checkpoint's tensors: name -> dtype, shape, bytes."""
    tensors = read(folder / WEIGHTS_FILE)
    return {name: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for name, x in tensors.items()}


def rounded(source: Path, folder: Path, dtype: Any = ml_dtypes.bfloat16) -> Path:
    """A copy of a safetensors checkpoint in another dtype."""
    shutil.copytree(source, folder)
    tensors = {name: np.asarray(x).astype(dtype) for name, x in read(source / WEIGHTS_FILE).items()}
    write(folder / WEIGHTS_FILE, tensors)
    return folder


def extra(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Add tensors to a safetensors checkpoint, or replace them."""
    path = folder / WEIGHTS_FILE
    write(path, {**{name: np.array(x) for name, x in read(path).items()}, **tensors})
    changed(folder)


def changed(folder: Path) -> Path:
    """A folder in which files were changed on purpose: its digests go."""
    (folder / DIGESTS).unlink(missing_ok=True)
    return folder


def texts(folder: Path) -> dict[str, str]:
    """The text files of a folder, but for its digests."""
    there = [path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.name != DIGESTS]
    return {path.name: path.read_text() for path in there}


def set_config(folder: Path, **values: Any) -> None:
    """Change fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    changed(folder)
