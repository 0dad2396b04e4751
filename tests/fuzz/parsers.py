"""The parsers of strangers' bytes, each as a function of bytes that must end in a value or in an error of ours."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from conversion.formats import flax_msgpack, safetensors, tf_h5, torch_bin
from conversion.source import find
from tests.cases import ROOT
from ved_core import digests
from ved_core.configs.model import read_config
from ved_core.errors import VedError
from ved_core.generation.config import GenerationConfig

CORPUS = ROOT / "tests" / "fuzz" / "corpus"
Read = Callable[[Path], object]


def tensors(read: Callable[[Path], dict]) -> Read:
    """Every number of what a file holds."""

    def use(path: Path) -> None:
        for tensor in read(path).values():
            np.asarray(tensor)

    return use


def saved(path: Path) -> None:
    """What a training script saved, and the names in it."""
    torch_bin.read_inside(path)
    torch_bin.pickled_names(path)


READERS: dict[str, tuple[str, Read]] = {
    "safetensors": ("model.safetensors", tensors(safetensors.read)),
    "flax": ("flax_model.msgpack", tensors(flax_msgpack.read)),
    "torch": ("pytorch_model.bin", tensors(torch_bin.read)),
    "pickle": ("x.pt", saved),
    "tf": ("tf_model.h5", tensors(tf_h5.read)),
    "index": ("model.safetensors.index.json", lambda path: find(path).files()),
    "config": ("config.json", read_config),
    "generation": ("generation_config.json", lambda path: GenerationConfig.from_folder(path.parent)),
    "digests": ("ved_digests.json", lambda path: digests.read(path.parent)),
}
"""Parser -> the name of its file, and what reads it."""


def parse(name: str, data: bytes) -> bool:
    """Let a parser read bytes from a file; False where they are refused. Raises whatever else comes of it."""
    file, read = READERS[name]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, file)
        path.write_bytes(data)
        try:
            read(path)
        except VedError as error:
            if "\n" in str(error):
                raise ValueError("an error of several lines") from error
            return False
    return True


def corpus(name: str) -> list[bytes]:
    """The small files that begin a search."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
