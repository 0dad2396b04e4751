"""kill -9 while a checkpoint is saved or converted: the folder is the old or the new one, complete."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from conversion.convert import convert
from tests.torture import Attack, Outcome
from tests.torture._saver import Savers, found_in, gone, servers

MOMENTS = 0.25
"""Seconds within which a process is killed: some saves."""


def run(seed: int, count: int) -> Iterator[Outcome]:
    """Kill so often, at random moments."""
    rng = random.Random(seed)
    with servers() as (savers, versions, folder):
        for number in range(count):
            framework = sorted(savers)[number % len(savers)]
            kind = ("save_pretrained", "convert")[number // 2 % 2]
            way = ("exchanged", "in place")[number // 4 % 2]
            target = folder / f"{kind} {way}" / "x"
            yield killed(savers[framework], f"{framework}, {kind}, {way}", kind, way, target, versions, rng)


def killed(
    saver: Savers, title: str, kind: str, way: str, target: Path, versions: tuple[Path, Path], rng: random.Random
) -> Outcome:
    """One process, killed; then what it left, which another save clears away."""
    there = target.exists()
    process = saver.begin(kind, way, target, rng.randrange(2**31))
    time.sleep(rng.random() * MOMENTS)
    os.kill(process, signal.SIGKILL)
    gone(process)
    middle = any(path.name.startswith(".") for path in (*target.parent.glob("*"), *target.glob("*")))
    try:
        assert not saver.complaints(), "the saver itself failed"
        version = found_in(target, versions) if there or target.exists() else "nothing yet"
        if rng.random() < 0.3:
            convert(versions[0], target)
            assert found_in(target, versions) == "one"
            left = [path.name for path in (*target.parent.iterdir(), *target.iterdir()) if path.name.startswith(".")]
            assert not left, f"{left} is left of it"
    except Exception as error:
        return Outcome(title, "failed", f"{type(error).__name__}: {error}; {saver.complaints()}")
    return Outcome(title, "survived", f"{version}, in the middle of a save" if middle else version)


ATTACK = Attack("kill -9 during save_pretrained and conversion", 100, run, short=12)
