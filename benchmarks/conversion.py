"""Time and peak memory of converting a 1 GB checkpoint between all formats, beside a plain copy of the same bytes, and
of loading it into Flax.

A ViT-B/16 with GPT-2 (239 M parameters, float32, random numbers). Each conversion runs in a process of its own, in turn
with a copy (read, write, fsync) of the file; the ratio is taken pair by pair. Peak memory is RssAnon, which leaves out
pages of mapped files.

    python benchmarks/conversion.py [--runs 3] [--small] [--folder DIR] [--write]
"""

# ruff: noqa: E402
import sys
from pathlib import Path

# This file has the name of the package that it measures.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import argparse
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

import numpy as np

from conversion.checkpoint import new_carried
from conversion.convert import convert
from conversion.formats import FORMATS
from conversion.rules import Row
from conversion.saving import Stored, write
from conversion.tables import model_table
from conversion.tensors import Lazy
from ved_core.configs import CONFIG_FILE, GPT2Config, VisionEncoderDecoderConfig, ViTConfig

MB = 2**20
RESULT = Path(__file__).parent / "results" / "conversion.md"
TRANSPOSED = ("flax", "orbax", "tf")
"""Formats in which linear maps lie the other way than in PyTorch's."""
LIMITS = {False: 1.5, True: 3.0}
SMALL = {"encoder": {"num_hidden_layers": 1}, "decoder": {"n_layer": 1, "vocab_size": 5000}}


def source(folder: Path, small: bool) -> tuple[int, int]:
    """Write the checkpoint; returns its bytes, and those of its largest tensor."""
    sizes = SMALL if small else {"encoder": {}, "decoder": {}}
    encoder, decoder = ViTConfig(**sizes["encoder"]), GPT2Config(**sizes["decoder"])
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    table = model_table(config)
    tensors = {
        row.stored: Lazy(row.shape, np.dtype(np.float32), functools.partial(numbers, i, row.shape))
        for i, row in enumerate(table.rows)
        if isinstance(row, Row)
    }
    write(folder, Stored(tensors | new_carried(table, 0), config), {CONFIG_FILE: config.to_json()})
    return sum(tensor.nbytes for tensor in tensors.values()), max(tensor.nbytes for tensor in tensors.values())


def numbers(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of a trained model's size."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.02)


def copy(place: Path, target: Path) -> None:
    """Read a file, or a folder's files, and write them again, on disk when this returns."""
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    with target.open("wb") as output:
        for file in files:
            with file.open("rb") as content:
                while data := content.read(16 * MB):
                    output.write(data)
        output.flush()
        os.fsync(output.fileno())


def anonymous() -> int:
    """This process's RssAnon in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(work: dict) -> dict:
    """Do one piece of work in this process: seconds, and the peak of memory above what was there before."""
    place, target, to = Path(work["place"]), Path(work["target"]), work["to"]
    if "orbax" in (to, work["from"]):
        FORMATS["orbax"].write(target.parent / "warm", {"parameters/x": np.ones(1)})  # imports JAX and Orbax
        shutil.rmtree(target.parent / "warm")
    if to == "flax model":
        import jax

        from ved_flax import FlaxVisionEncoderDecoderModel

        jax.block_until_ready(jax.numpy.zeros(3))
    base, peak, running = anonymous(), 0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if to == "copy":
        copy(place, target)
    elif to == "flax model":
        model = FlaxVisionEncoderDecoderModel.from_pretrained(place)
        model.decoder.tokens.embedding[...].block_until_ready()
    else:
        convert(place, target, to)
    seconds = time.perf_counter() - start
    running = False
    watcher.join()
    return {"seconds": seconds, "peak": peak - base}


def run(work: dict) -> dict:
    """`measured` in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--work", json.dumps(work)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    """Print the table; the status is 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="of each conversion (default: 3)")
    parser.add_argument("--small", action="store_true", help="a small checkpoint, to see that this runs")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULT.name}, README's part of it")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(measured(json.loads(options.work))))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        lines, missed = tables(Path(name), options.runs, options.small)
    if options.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join(lines) + "\n")
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


def tables(folder: Path, runs: int, small: bool) -> tuple[list[str], list[str]]:
    """Measure, printing as it goes; the lines that were printed, and what is beyond its limit."""
    lines: list[str] = []
    missed: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    size, largest = source(folder / "safetensors", small)
    for to in list(FORMATS)[1:]:
        convert(folder / "safetensors", folder / to, to)
    bound = max(size // 4, 2 * largest)
    say(f"{size / 1e9:.2f} GB, largest tensor {largest / MB:.0f} MiB; memory should be at most {bound / MB:.0f} MiB.\n")
    say("| from | to | seconds | of a copy (pairs' median, min to max) | at most | peak MiB |")
    say("|---|---|---|---|---|---|")
    for one, other in itertools.permutations(FORMATS, 2):
        seconds, ratios, peaks = [], [], []
        for _ in range(runs):
            times = {}
            for to in ("copy", other):
                place = folder / one / FORMATS[one].weights if to == "copy" else folder / one
                target = folder / f"target-{to}"
                times[to] = run({"place": str(place), "target": str(target), "to": to, "from": one})
                remove(target)
            seconds.append(times[other]["seconds"])
            ratios.append(times[other]["seconds"] / times["copy"]["seconds"])
            peaks.append(times[other]["peak"])
        limit = LIMITS[(one in TRANSPOSED) or (other in TRANSPOSED)]
        ratio, peak = statistics.median(ratios), max(peaks)
        spread = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        say(f"| {one} | {other} | {statistics.median(seconds):.1f} | {spread} | {limit} | {peak / MB:.0f} |")
        if ratio > limit or peak > bound:
            missed.append(f"{one} to {other}: {ratio:.2f} of a copy, {peak / MB:.0f} MiB")
    say("\n| loaded into Flax from | seconds | peak memory, of the checkpoint |")
    say("|---|---|---|")
    for one in FORMATS:
        work = {"place": str(folder / one), "target": str(folder / "target"), "to": "flax model", "from": one}
        done = [run(work) for _ in range(runs)]
        median, peak = statistics.median(d["seconds"] for d in done), max(d["peak"] for d in done)
        say(f"| {one} | {median:.1f} | {peak / size:.2f} |")
    return lines, missed


if __name__ == "__main__":
    sys.exit(main())
