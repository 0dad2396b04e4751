"""A process that reads what may be hostile, one folder after another: its memory is limited, and a crash or a hang of
it ends nothing else.

`with Worker() as worker: worker.ask("flax", folder)` gives an Answer. Started as `python -m tests.torture.worker`, it
takes one JSON request a line.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.cases import ROOT

MEMORY = 12 * 2**30
"""Bytes of address space, most of which JAX and torch reserve and never touch."""
FILES = 64 * 2**20
SECONDS = 5
"""Of the worker's own time, however busy the machine is."""
PATIENCE = 60
"""Seconds that it may compute, imports among it, or do nothing at all."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a request ended. `kind`: "done", "refused" (an error of ours) or "wrong"; `grown`: bytes of memory at the
    peak beyond what was there before."""

    kind: str
    detail: str
    seconds: float = 0.0
    grown: int = 0


class Worker:
    """Starts the process when it is first asked, and again when it has died."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, what: str, place: Path, **options: Any) -> Answer:
        """Let it do one of ACTIONS with a folder."""
        process = self.process = self.process or self._started()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps({"what": what, "place": str(place), "options": options}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline() if self._answers(process) else None
        except BrokenPipeError:
            line = ""
        if line:
            return Answer(**json.loads(line))
        ended = "hangs" if line is None else f"dies with {process.wait()}"
        self._stop()
        return Answer("wrong", f"the process {ended}")

    def _answers(self, process: "subprocess.Popen[str]") -> bool:
        """Whether it does, before it has computed or stood still for too long. Time on the wall says nothing of that: a
        busy machine may let it wait."""
        began = latest = computed(process.pid)
        still = time.monotonic()
        while not select.select([process.stdout], [], [], 1)[0]:
            now = computed(process.pid)
            if now > latest:
                latest, still = now, time.monotonic()
            if now - began > PATIENCE or time.monotonic() - still > PATIENCE:
                return False
        return True

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.torture.worker"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", **self.environment}
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def computed(process: int) -> float:
    """The seconds that a process and its threads have computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read(place: Path, **options: Any) -> None:
    """Every number of a model, without a framework."""
    import numpy as np

    from conversion import checkpoint
    from conversion.tables import model_table
    from ved_core.configs import VisionEncoderDecoderConfig

    table = model_table(VisionEncoderDecoderConfig.from_pretrained(place))
    for tensor in checkpoint.load(place, table, "torch", **options).parameters.values():
        np.asarray(tensor)


def model(framework: str) -> Callable[..., None]:
    """Loading a model."""
    name = {"flax": "FlaxVisionEncoderDecoderModel", "torch": "VisionEncoderDecoderModel"}[framework]

    def load(place: Path, **options: Any) -> None:
        getattr(importlib.import_module(f"ved_{framework}"), name).from_pretrained(place, **options)

    return load


def command(place: Path, arguments: tuple[str, ...] = ()) -> None:
    """`ved` with arguments, in which {} stands for the place."""
    import ved_cli

    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        ved_cli.main([argument.format(place) for argument in arguments])


def processor(place: Path) -> None:
    """The image processor and the tokenizer."""
    from ved_core.processing import Processor

    found = Processor.from_pretrained(place)
    _ = found.image_processor, found.tokenizer


ACTIONS: dict[str, Callable[..., None]] = {
    "read": read,
    "flax": model("flax"),
    "torch": model("torch"),
    "processor": processor,
    "command": command,
}


def done(action: Callable[..., None], place: Path, options: dict[str, Any]) -> Answer:
    """Do it, and say how it ended."""
    from ved_core.errors import VedError

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.process_time()
    opened: list[str] = []
    try:
        with watched(opened):
            action(place, **options)
        kind, detail = "done", ""
    except VedError as error:
        kind, detail = "refused", f"{type(error).__name__}: {error}"
    except BaseException:
        kind, detail = "wrong", traceback.format_exc(limit=-3)
    seconds, grown = time.process_time() - start, memory("VmHWM") - before
    if opened:
        kind, detail = "wrong", f"{', '.join(opened)}; {detail}"
    if seconds > SECONDS:
        kind, detail = "wrong", f"takes {seconds:.1f} s; {detail}"
    return Answer(kind, detail, seconds, grown)


WATCH: list[list[str]] = []
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo")


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes what no checkpoint may bring about: programs, connections, files that are marked as secret."""
    if WATCH and event in FORBIDDEN:
        WATCH[-1].append(f"{event}{arguments!r:.100}")
    elif WATCH and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        if "outside-secret" in os.path.realpath(os.fsdecode(arguments[0])):
            WATCH[-1].append(f"opens {arguments[0]!r}")
    elif WATCH and event == "builtins.input":
        WATCH[-1].append("asks")


@contextlib.contextmanager
def watched(found: list[str]) -> Iterator[None]:
    """Note forbidden events meanwhile."""
    WATCH.append(found)
    try:
        yield
    finally:
        WATCH.pop()


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))
    sys.addaudithook(hook)
    warm: set[str] = set()
    requests = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody answers a prompt
    for line in requests:
        request = json.loads(line)
        what = request["what"]
        if what not in warm:  # imports are no case's
            warm.add(what)
            with contextlib.suppress(Exception):
                ACTIONS[what](warming())
        answer = done(ACTIONS[what], Path(request["place"]), request["options"])
        answers.write(json.dumps(dataclasses.asdict(answer)) + "\n")
        answers.flush()


def warming() -> Path:
    """A checkpoint that is fine."""
    from conversion.formats.orbax import library
    from conversion.formats.tf_h5 import h5py
    from tests.cases import READER

    h5py(), library()
    return READER


if __name__ == "__main__":
    main()
