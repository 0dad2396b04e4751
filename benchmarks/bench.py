"""`Bench`: what the rows of one run share: workers, checkpoints and the machine's ceilings."""

import functools
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from benchmarks import models
from benchmarks.floors import Ceilings
from benchmarks.worker import ROOT, Worker, WorkerError

OURS = ("ved_flax", "ved_torch")
EAGER, COMPILED, ONNX = "transformers_torch", "transformers_torch/compiled", "onnx"
PEERS = (EAGER, COMPILED, ONNX)
TITLES = {EAGER: "transformers", COMPILED: "transformers, static cache and torch.compile", ONNX: "ONNX Runtime"}
ONNX_PYTHON = ROOT / ".venv-onnx" / "bin" / "python"


class Bench:
    """A context manager. Workers live as long as rows of their model follow each other."""

    def __init__(self, folder: Path | None = None, rounds: int | None = None) -> None:
        """`folder`: where checkpoints are, or are made (a temporary one by default)."""
        self.given, self.rounds = folder, rounds

    def __enter__(self) -> Self:
        self.held, self.workers = ExitStack(), ExitStack()
        self.folder = self.given or Path(self.held.enter_context(tempfile.TemporaryDirectory()))
        self.model = ""
        self.known: dict[str, Worker | str] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.close()
        self.held.close()

    @functools.cached_property
    def measured(self) -> dict[str, Any]:
        """Both ceilings, and by which kernels they were reached."""
        with Worker("ceilings", "", self.folder) as worker:
            return worker("measure")

    @property
    def ceilings(self) -> Ceilings:
        return Ceilings(self.measured["bandwidth"], self.measured["matrix"])

    def worker(self, side: str, model: str) -> Worker:
        """One that stays. Raises WorkerError where the side cannot compute here."""
        if model != self.model:
            self.workers.close()
            self.known, self.model = {}, model
        if side not in self.known:
            try:
                self.known[side] = self.workers.enter_context(self.fresh(side, model))
            except WorkerError as error:
                self.known[side] = str(error)
        found = self.known[side]
        if isinstance(found, str):
            raise WorkerError(found)
        return found

    def fresh(self, side: str, model: str) -> Worker:
        """One for the caller alone."""
        models.checkpoint(model, self.folder)
        if side != ONNX:
            return Worker(side, model, self.folder)
        if not ONNX_PYTHON.exists():
            raise WorkerError("not installed: make .venv-onnx/.done")
        return Worker(side, model, self.folder, str(ONNX_PYTHON))

    def give_up(self, side: str, error: WorkerError) -> None:
        """Ask this side no more about this model."""
        print(f"{side} of {self.model}: {error}", file=sys.stderr)
        self.known[side] = str(error)
