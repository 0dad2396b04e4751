"""kill -9 while a run's checkpoints are saved in the background: the latest one that is there restores exactly, and no
more than the one that was being written is lost."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cases import ROOT
from tests.torture import Attack, Outcome

EVERY = 3
"""Steps from one save to the next."""
MOMENTS = 0.08
"""Seconds behind the beginning of a save within which a process is killed."""


def run(seed: int, count: int) -> Iterator[Outcome]:
    """One run, killed so often, and taken up again each time."""
    if not (importlib.util.find_spec("flax") and importlib.util.find_spec("orbax")):
        return
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile("w+") as errors:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.torture._trainer"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, stderr=errors, text=True)
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        least, most = 0, 0
        for number in range(count + 1):  # what the last kill leaves is looked at too
            server.stdin.write(f"{Path(place) / 'run'}\n")
            server.stdin.flush()
            process = int(server.stdout.readline().split()[1])
            said = server.stdout.readline().split()
            if number:
                title = f"kill {number} behind the beginning of save {most}"
                if said[0] != "restored" or not least <= int(said[1]) <= most:
                    errors.seek(0)
                    yield Outcome(title, "failed", f"{said} of {least} to {most}; {errors.read()[-1500:]}")
                    if said[0] != "restored":
                        return
                else:
                    yield Outcome(title, "survived", f"restored {said[1]}")
            least = most = int(said[1])
            for _ in range(rng.choice((1, 1, 2, 3))):
                while not (line := server.stdout.readline()).startswith("saves"):
                    least = begun(line, least)
                most = int(line.split()[1])
            time.sleep(rng.random() * MOMENTS)
            os.kill(process, signal.SIGKILL)
            while (line := server.stdout.readline().strip()) != "gone":
                least = begun(line, least)
                most = int(line.split()[1]) if line.startswith("saves") else most
        server.stdin.close()
        server.wait(timeout=60)


def begun(line: str, least: int) -> int:
    """The step that must be there: where a save has begun, the one before is complete."""
    return max(least, int(line.split()[1]) - EVERY) if line.startswith("begun") else least


ATTACK = Attack("kill -9 during an asynchronous orbax save", 50, run, short=4)
