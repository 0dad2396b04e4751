"""Two processes that save or convert to one folder, two readers meanwhile: each sees one version, complete."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion.convert import convert
from tests.torture import Attack, Outcome
from tests.torture._saver import MODELS, STARTS, Savers, found_in, gone, servers

READS = 4
"""Of each reader in a round, while the savers save as fast as they can."""
Read = Callable[[Path], str]
"""A folder -> what was seen in it, "" for a whole version."""


def loads(framework: str, versions: tuple[Path, Path]) -> Read:
    """Reads with `from_pretrained`, and looks at every parameter."""
    cls = getattr(__import__(f"ved_{framework}"), MODELS[framework])
    tensors = __import__(f"ved_{framework}.state", fromlist=["tensors"]).tensors
    expected = [{name: np.asarray(x) for name, x in tensors(cls.from_pretrained(place)).items()} for place in versions]

    def read(folder: Path) -> str:
        model = cls.from_pretrained(folder)
        mine = expected[STARTS.index(model.config.decoder_start_token_id)]
        wrong = [name for name, x in tensors(model).items() if not np.array_equal(np.asarray(x), mine[name])]
        return f"{framework}: config of one version, of the other {wrong[:3]}" if wrong else ""

    return read


def converts(place: Path, versions: tuple[Path, Path]) -> Read:
    """Reads by converting the folder to another one."""

    def read(folder: Path) -> str:
        convert(folder, place, "flax")
        found_in(place, versions)
        return ""

    return read


def run(seed: int, count: int) -> Iterator[Outcome]:
    """So many rounds."""
    rng = random.Random(seed)
    with servers() as (savers, versions, folder):
        readers = [loads(name, versions) for name in savers] + [converts(folder / "copy", versions)]
        for number in range(count):
            way = ("exchanged", "in place")[number % 2]
            kinds = [rng.choice(("save_pretrained", "convert")) for _ in range(2)]
            pair = [savers[rng.choice(sorted(savers))] for _ in range(2)]
            chosen = rng.sample(readers, 2)
            title = f"{way}: {kinds[0]} and {kinds[1]}"
            yield contest(title, pair, kinds, way, chosen, folder / way / "x", versions, rng)


def contest(
    title: str,
    savers: list[Savers],
    kinds: list[str],
    way: str,
    readers: list[Read],
    target: Path,
    versions: tuple[Path, Path],
    rng: random.Random,
) -> Outcome:
    """One round."""
    problems: list[str] = []
    reads: list[Any] = []
    processes = [
        saver.begin(kind, way, target, rng.randrange(2**31)) for saver, kind in zip(savers, kinds, strict=True)
    ]

    def watch(read: Read) -> None:
        until = time.monotonic() + 60
        while not target.exists() and time.monotonic() < until:
            time.sleep(0.005)
        for _ in range(READS):
            try:
                if problem := read(target):
                    problems.append(problem)
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
            reads.append(read)

    threads = [threading.Thread(target=watch, args=(read,)) for read in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        os.kill(process, signal.SIGKILL)
        gone(process)
    problems += [said for saver in savers if (said := saver.complaints())]
    try:
        found_in(target, versions)
    except Exception as error:
        problems.append(f"at the end: {type(error).__name__}: {error}")
    if problems:
        return Outcome(title, "failed", f"{len(problems)} of {len(reads)} reads: {problems[0]}")
    return Outcome(title, "survived", f"{len(reads)} reads")


ATTACK = Attack("two savers or conversions of one folder, two readers", 50, run, short=6)
