"""`ved read --output` over very many images, some of them bad, interrupted by SIGINT and by SIGKILL, and resumed: every
image once, none too many, and memory that does not grow with their number."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cases import DIGITS, READER, ROOT
from tests.torture import Attack, Outcome

IMAGES = 10_000
BAD = 0.01
BATCH = 64
FEW = 500
"""The images of a short run."""
GROWTH = 64 << 10
"""KiB that the memory of a run over all images may be above that of a run over a tenth of them."""


def run(seed: int, count: int) -> Iterator[Outcome]:
    """So many runs, in turn in each framework; for a `count` of 0, one of fewer images."""
    frameworks = [name for name in ("flax", "torch") if importlib.util.find_spec(name)]
    for number in range(max(count, 1)):
        images = IMAGES if count else FEW
        yield attempt(frameworks[(seed + number) % len(frameworks)], images, random.Random(seed + number))


def make(folder: Path, number: int, rng: random.Random) -> dict[str, str | None]:
    """Images by name: what is in each, None where it is bad. Links to the examples, which are few."""
    samples = json.loads((DIGITS / "expected.json").read_text())["samples"]
    (folder / "bad.txt").write_bytes((DIGITS / "00.png").read_bytes()[:300])
    texts: dict[str, str | None] = {}
    for i in range(number):
        name = f"{i:05d}.png"
        chosen = rng.randrange(len(samples))
        bad = rng.random() < BAD
        (folder / name).symlink_to(folder / "bad.txt" if bad else DIGITS / f"{chosen:02d}.png")
        texts[name] = None if bad else samples[chosen]["greedy_text"]
    return texts


def command(framework: str, output: Path, *images: str, resume: bool = True) -> list[str]:
    """`ved read`."""
    options = ["--output", str(output), *(["--resume"] if resume else []), "--batch-size", str(BATCH)]
    chosen = ["--model", str(READER), "--framework", framework]
    return [sys.executable, "-m", "ved_cli", "read", *images, *options, *chosen]


def lines(output: Path) -> int:
    """How many are whole."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def interrupted(process: subprocess.Popen[str], output: Path, behind: int, how: signal.Signals) -> tuple[int, str]:
    """Wait until so many lines are there, and end the process; its status and what it said."""
    while lines(output) < behind and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate()[1]
    return process.returncode, said


def memory(process: subprocess.Popen[str], output: Path, points: tuple[int, ...]) -> list[int]:
    """KiB that a process holds when so many lines are there."""
    found = []
    for point in points:
        while lines(output) < point and process.poll() is None:
            time.sleep(0.02)
        status = Path(f"/proc/{process.pid}/status").read_text()
        found += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    return found


def attempt(framework: str, number: int, rng: random.Random) -> Outcome:
    """One run, ended twice."""
    title = f"{framework}, {number} images"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def start(*images: str, resume: bool = True) -> subprocess.Popen[str]:
        called = command(framework, output, *images, resume=resume)
        return subprocess.Popen(called, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = make(folder, number, rng)
        (folder / "list.txt").write_text("".join(f"{name}\n" for name in texts))
        output = folder / "out.jsonl"
        # The list first, then a pattern that means the same images.
        status, said = interrupted(start("@list.txt", resume=False), output, rng.randrange(number // 3), signal.SIGINT)
        if status != 130 or "--resume" not in said:
            return Outcome(title, "failed", f"SIGINT: status {status}: {said[-500:]}")
        one = lines(output)
        interrupted(start("[0-9]*.png"), output, one + rng.randrange(1, number // 3), signal.SIGKILL)
        two = lines(output)
        with output.open("ab") as file:
            file.write(b'{"image": "00')  # as if it had been ended within a line
        process = start("@list.txt", "[0-9]*.png")
        held = memory(process, output, (two + number // 10, number - number // 20))
        said = process.communicate()[1]
        entries = [json.loads(line) for line in output.read_text().splitlines()]
        names = [entry["image"] for entry in entries]
        wrong = [
            e for e in entries if e.get("text") != texts[e["image"]] or ("error" in e) != (texts[e["image"]] is None)
        ]
        if process.returncode != 1 or sorted(names) != sorted(texts) or wrong:
            twice = len(names) - len(set(names))
            problem = (
                f"status {process.returncode}, {len(names)} lines, {twice} twice, wrong: {wrong[:2]}; {said[-300:]}"
            )
            return Outcome(title, "failed", problem)
        if len(held) == 2 and held[1] - held[0] > GROWTH:
            return Outcome(title, "failed", f"memory grew from {held[0]} to {held[1]} KiB")
    return Outcome(title, "survived", f"ended behind {one} and {two} lines; KiB of memory: {held}")


ATTACK = Attack(f"ved read over {IMAGES} images, ended twice and resumed", 1, run, short=0)
