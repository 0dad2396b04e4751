"""Processes that compute for the benchmarks: each framework has its own, so that none disturbs another's memory.

A worker is given a side (`benchmarks.sides`) and a model, and answers calls, one JSON line each:
{"call": "generate", "batch": 1} gets {"value": ...}, or {"error": "what went wrong"}.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Self

from benchmarks.memory import spare

THREADS = 2
ROOT = Path(__file__).parents[1]


class WorkerError(Exception):
    """A call that failed in a worker, which lives on; or a worker that died."""


class Worker:
    """A process, from `python -m benchmarks.worker`. A context manager."""

    def __init__(self, side: str, model: str, folder: Path, python: str = sys.executable) -> None:
        """`folder`: where checkpoints are."""
        numbers = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", side, model, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **numbers, **quiet},
        )
        self.answer()  # it is up

    def __call__(self, call: str, **arguments: Any) -> Any:
        """The value of a call. Raises WorkerError."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says that it died
            print(json.dumps({"call": call, **arguments}), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"the worker ended with status {self.process.wait()}")
        found = json.loads(line)
        if "error" in found:
            raise WorkerError(found["error"])
        return found["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it may have died
            self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Answer calls until there are no more."""
    side, model, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def answer(function: Any, **arguments: Any) -> Any:
        try:
            value = function(**arguments)
        except Exception as error:
            traceback.print_exc()
            print(
                json.dumps({"error": f"{type(error).__name__}: {error}".split("\n")[0][:200]}), file=answers, flush=True
            )
            return None
        finally:
            spare()
        print(json.dumps({"value": None if value is made.get("side") else value}), file=answers, flush=True)
        return value

    made: dict[str, Any] = {}

    def make() -> Any:
        module, _, variant = side.partition("/")
        cls = importlib.import_module(f"benchmarks.sides.{module}").Side
        made["side"] = cls(model, Path(folder), variant)
        return made["side"]

    if answer(make) is None:
        return
    for line in sys.stdin:
        request = json.loads(line)
        answer(getattr(made["side"], request.pop("call")), **request)


if __name__ == "__main__":
    main()
