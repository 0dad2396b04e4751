"""Processes that save to a folder again and again until they are killed: `python -m tests.torture._saver FRAMEWORK`.

Started once and forked for each order, a line "KIND WAY TARGET SEED" on stdin, since imports take longer than saves.
A child takes turns between two versions of a checkpoint, in formats that it draws.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from conversion import checkpoint
from conversion import folder as folders
from conversion.convert import convert
from conversion.folder import consistent
from conversion.formats import FORMATS
from conversion.tables import model_table
from tests.cases import READER, ROOT
from ved_core.configs import VisionEncoderDecoderConfig

FORMATS_SAVED = (("safetensors", None), ("torch", None), ("flax", None), ("tf", None), ("safetensors", "300KB"))
STARTS = (0, 3)
"""The start token of each version: what its config.json has."""
MODELS = {"flax": "FlaxVisionEncoderDecoderModel", "torch": "VisionEncoderDecoderModel"}


def make_versions(folder: Path) -> tuple[Path, Path]:
    """Two checkpoints that differ in every tensor and in the config."""
    whole = checkpoint.read(READER)
    places = (folder / "one", folder / "other")
    for place, start, factor in zip(places, STARTS, (1, -0.5), strict=True):
        place.mkdir()
        for file in READER.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        config = VisionEncoderDecoderConfig.from_pretrained(place)
        config.decoder_start_token_id = start
        config.save_pretrained(place)
        tensors = {name: np.asarray(tensor) * np.float32(factor) for name, tensor in whole.items()}
        (place / "model.safetensors").unlink()
        FORMATS["safetensors"].write(place / "model.safetensors", tensors)
    return places


def found_in(folder: Path, versions: tuple[Path, Path]) -> str:
    """Which version is in a folder, complete: "one" or "other". Raises AssertionError for anything else."""

    def read(place: Path) -> tuple[int, dict[str, np.ndarray]]:
        config = VisionEncoderDecoderConfig.from_pretrained(place)
        tensors = checkpoint.load(place, model_table(config), "torch").parameters
        return config.decoder_start_token_id, {name: np.asarray(tensor) for name, tensor in tensors.items()}

    start, found = consistent(folder, lambda: read(folder))  # as a model is loaded
    version = versions[STARTS.index(start)]
    wrong = [name for name, x in read(version)[1].items() if not np.array_equal(found[name], x)]
    assert not wrong, f"config of {version.name}, but not its {wrong[:3]}"
    kinds = {each.name for each in FORMATS.values() for file in folder.iterdir() if each.owns(file.name)}
    assert len(kinds) == 1, f"weights of {kinds}"
    return version.name


def save_for_ever(kind: str, target: Path, seed: int, versions: tuple[Path, Path], models: list[Any]) -> None:
    """Take turns, beginning with either."""
    rng = random.Random(seed)
    turn = rng.randrange(2)
    while True:
        to, size = rng.choice(FORMATS_SAVED)
        if kind == "convert":
            convert(versions[turn], target, to, shard_size=size)
        else:
            models[turn].save_pretrained(target, format=to, max_shard_size=size)
        turn = 1 - turn


def serve(framework: str, versions: tuple[Path, Path]) -> None:
    """Fork for every order on stdin, until that ends."""
    module = __import__(f"ved_{framework}")
    models = [getattr(module, MODELS[framework]).from_pretrained(version) for version in versions]
    import h5py  # noqa: F401  the children should not import it each anew

    print("ready", flush=True)
    for line in sys.stdin:
        kind, way, target, seed = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                if way == "in place":
                    folders._exchanged = lambda *_: False  # type: ignore[assignment]
                save_for_ever(kind, Path(target), int(seed), versions, models)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(child, flush=True)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class Savers:
    """A server, and the orders to it. A context manager."""

    def __init__(self, framework: str, versions: tuple[Path, Path]) -> None:
        command = [sys.executable, "-m", "tests.torture._saver", framework, *map(str, versions)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the server
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, stderr=self.errors, text=True
        )
        assert self._line() == "ready", self.complaints()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def complaints(self) -> str:
        """What the children said on stderr."""
        self.errors.seek(0)
        return self.errors.read()[-2000:]

    def begin(self, kind: str, way: str, target: Path, seed: int) -> int:
        """Let a process save to a target, until it is killed; its id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind}\t{way}\t{target}\t{seed}\n")
        self.process.stdin.flush()
        return int(self._line())

    def __enter__(self) -> "Savers":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.errors.close()


@contextlib.contextmanager
def servers() -> Iterator[tuple[dict[str, Savers], tuple[Path, Path], Path]]:
    """A server for each framework, the versions that they save, and a folder to save in."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        versions = make_versions(folder)
        savers = {name: stack.enter_context(Savers(name, versions)) for name in MODELS if installed(name)}
        yield savers, versions, folder


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


def gone(process: int) -> None:
    """Wait until a process that is no child of ours has ended: as a zombie, or for good."""
    while True:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return


if __name__ == "__main__":
    serve(sys.argv[1], (Path(sys.argv[2]), Path(sys.argv[3])))
