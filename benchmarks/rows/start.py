"""What it takes until the first caption is there, in fresh processes: imports, loading, `ved read`."""

import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import floors, models, reading
from benchmarks.bench import EAGER, OURS, Bench
from benchmarks.rows.row import Result, Row, limit
from benchmarks.timing import alternating, medians, ratio
from benchmarks.worker import ROOT, THREADS

ROUNDS = 5
MODEL = "vit-gpt2"
IMPORTS = {"ved_flax": "jax, flax.nnx", "ved_torch": "torch"}
EXTRA, TIMES = 0.3, 1.2
"""Seconds that `import ved_flax` may take beside JAX, and the share of torch's own time of `import ved_torch`."""


def fresh(arguments: list[str], cache: Path | None = None) -> float:
    """Wall time of a Python process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS)}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT, env=environment)
    return time.perf_counter() - start


def read(warm: bool, wanted: dict[str, float], bench: Bench) -> Result:
    """`ved read` on one image, its compilation cache filled or empty, beside transformers."""
    place = models.checkpoint(MODEL, bench.folder)
    image, new = str(reading.complete(place)), str(models.NEW_TOKENS)
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)

        def ours(side: str) -> float:
            if not warm:
                shutil.rmtree(cache / "ved", ignore_errors=True)
            options = ["--framework", side.removeprefix("ved_"), "--min-new-tokens", new, "--max-new-tokens", new]
            return fresh(["-m", "ved_cli", "read", image, "--model", str(place), *options], cache)

        runs = {side: functools.partial(ours, side) for side in wanted}
        runs[EAGER] = lambda: fresh(["-m", "benchmarks.read_transformers", str(place), image, new])
        times = alternating(runs, bench.rounds or (ROUNDS if warm else 3))
    return limit(beside(times, list(wanted), EAGER), wanted)


def imports(side: str, bench: Bench) -> Result:
    """Of a package beside the framework that it is made for."""
    bare = IMPORTS[side]
    runs = {name: functools.partial(fresh, ["-c", f"import {name}"]) for name in (bare, f"{bare}, {side}")}
    times = alternating(runs, bench.rounds or 7)
    result = beside({side: times[f"{bare}, {side}"], bare: times[bare]}, [side], bare)
    if side == "ved_torch":
        return limit(result, {side: TIMES})
    pairs = zip(times[f"{bare}, {side}"], times[bare], strict=True)
    result["ours"][side]["extra"] = statistics.median(mine - other for mine, other in pairs)
    return limit(result, {side: EXTRA}, "extra")


def loading(bench: Bench) -> Result:
    """1 GB from a mapped file to a model; `peak` of memory, of the checkpoint's bytes."""
    size = floors.costs(MODEL).total_bytes
    sides = (*OURS, EAGER)
    peaks: dict[str, list[float]] = {side: [] for side in sides}

    def run(side: str) -> float:
        with bench.fresh(side, MODEL) as worker:
            found = worker("loading")
        peaks[side].append(found["peak"] / size)
        return found["seconds"]

    times = alternating({side: functools.partial(run, side) for side in sides}, bench.rounds or ROUNDS)
    result = limit(beside(times, OURS, EAGER), dict.fromkeys(OURS, 1.2))
    for side, figures in result["ours"].items():
        figures["peak"] = max(peaks[side])
        figures["met"] = figures["met"] and figures["peak"] <= 1.3
    result["peer_peak"] = max(peaks[EAGER])
    return result


def beside(times: dict[str, list[float]], ours: list[str] | tuple[str, ...], peer: str) -> Result:
    """The figures of runs that alternated."""
    found = medians(times)
    return {
        "unit": "s",
        "rounds": len(times[peer]),
        "ours": {side: {"value": found[side], **ratio(times[side], times[peer])._asdict()} for side in ours},
        "peers": {peer: found[peer]},
        "best": peer,
    }


ROWS = [
    Row("ved read, warm compilation cache", functools.partial(read, True, dict.fromkeys(OURS, 0.6))),
    Row("ved read, cold compilation cache", functools.partial(read, False, {"ved_flax": 1.3})),
    *(Row(f"import {side}", functools.partial(imports, side)) for side in IMPORTS),
    Row("load 1 GB", loading),
]
