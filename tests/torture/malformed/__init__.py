"""Malformed checkpoints in all five formats: one typed error each, soon, in little memory, and no model.

Cases are a small model's files with one thing wrong, files that were made by hand (`tests.hostile`), and random damage
(`tests.damage`). What random damage leaves readable may be read; of anything else only the right numbers. Digests are
off, so that the readers have to notice. Each format has a module, whose KINDS are what can be wrong with it.
"""

import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS
from conversion.tensors import equal
from tests.cases import FIXTURES
from tests.torture import Attack, Outcome
from tests.torture.malformed import flax_msgpack, orbax, safetensors, tf_h5, torch_bin
from tests.torture.malformed.any_format import ANY
from tests.torture.malformed.changes import Change
from tests.torture.worker import Worker

SOURCE = FIXTURES / "vit-gpt2"
MEMORY = 64 * 2**20
WAYS = ("read", "flax", "torch")
KINDS: dict[str, dict[str, Change]] = {
    "safetensors": safetensors.KINDS,
    "torch": torch_bin.KINDS,
    "flax": flax_msgpack.KINDS,
    "tf": tf_h5.KINDS,
    "orbax": orbax.KINDS,
}
# Kinds that choose come as often as those that are one file.
for _name, _kinds in KINDS.items():
    _chosen = {kind: change for kind, change in _kinds.items() if not kind.startswith("by hand")}
    _fixed = len(_kinds) - len(_chosen)
    _more = itertools.islice(itertools.cycle(_chosen.items()), max(0, _fixed - len(_chosen)))
    KINDS[_name] = _kinds | {f"{kind} ({i})": change for i, (kind, change) in enumerate(_more)}


def run(seed: int, count: int) -> Iterator[Outcome]:
    """Every format's kinds in turn, each read without a framework, by Flax and by PyTorch in turn."""
    kinds = {name: [*each.items(), *ANY.items()] for name, each in KINDS.items()}
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        whole = {name: Path(place, "whole", name) for name in FORMATS}
        for name, folder in whole.items():
            convert(SOURCE, folder, name)
            for way in WAYS if name == "safetensors" else WAYS[:1]:
                answer = worker.ask(way, folder)
                if answer.kind != "done":
                    yield Outcome(f"{name} undamaged, {way}", "failed", answer.detail)
        for number in range(count):
            name = list(FORMATS)[number % len(FORMATS)]
            turn = number // len(FORMATS) + seed
            kind, change = kinds[name][turn % len(kinds[name])]
            rng = random.Random(seed * 1_000_003 + number)
            way = WAYS[(turn // len(kinds[name]) + turn) % len(WAYS)]
            folder = Path(place, "case")
            shutil.copytree(whole[name], folder)
            change(folder, rng)
            found = outcome(worker, f"{number}: {name}, {kind}, {way}", way, folder, may_live=True)
            if found.verdict == "survived" and not kind.startswith("random") and not same(folder, whole[name]):
                found = Outcome(found.case, "failed", "is read as if nothing were wrong")
            yield found
            shutil.rmtree(folder)


def same(folder: Path, whole: Path) -> bool:
    """Whether a folder has all the numbers that it had: what was wrong with it was of no use to anyone."""
    found, expected = (checkpoint.read(place, check_digests=False) for place in (folder, whole))
    return found.keys() == expected.keys() and all(equal(found[name], tensor) for name, tensor in expected.items())


def outcome(worker: Worker, case: str, way: str, folder: Path, *, may_live: bool = False, **options: Any) -> Outcome:
    """Read a folder in a process of its own."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    answer = worker.ask(way, folder, **{"check_digests": False, **options})
    if answer.grown > 2 * size + MEMORY:
        return Outcome(case, "failed", f"takes {answer.grown >> 20} MiB for {size} bytes; {answer.detail}")
    if answer.kind == "refused" or (answer.kind == "done" and may_live):
        return Outcome(case, "refused" if answer.kind == "refused" else "survived", answer.detail)
    return Outcome(case, "failed", answer.detail or "is read as if nothing were wrong")


ATTACK = Attack("malformed checkpoints", 500, run, short=10)
