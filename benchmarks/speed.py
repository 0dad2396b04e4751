"""How fast this library is beside what anybody would pick instead, and beside what the machine can do.

Every framework computes in a process of its own, on two threads, in turn with the others; the floor is what must be
read or multiplied by the ceilings measured in the same run.

    python -m benchmarks.speed [--only "vit-gpt2 greedy B=1" ...] [--write] [--rounds 3] [--folder DIR]
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.rows import generation, parts, start, training
from benchmarks.table import described, picture
from benchmarks.worker import WorkerError

RESULT = Path(__file__).parent / "results" / "speed.json"
PICTURE = RESULT.with_suffix(".png")
ROWS = [*generation.ROWS, *parts.ROWS, *training.ROWS, *start.ROWS]


def main() -> int:
    """Measure and print; the status is 0 whatever comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="rows in whose name one of these is found")
    parser.add_argument("--rounds", type=int, help="of each row (default: as many as a minute allows)")
    parser.add_argument("--folder", type=Path, help="keep checkpoints there (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULT.name}, for README's table")
    parser.add_argument("--list", action="store_true", help="print the rows' names and nothing else")
    options = parser.parse_args()
    rows = [row for row in ROWS if any(text in row.name for text in options.only)]
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    begun = time.monotonic()
    with Bench(options.folder, options.rounds) as bench:
        bandwidth, matrix = bench.ceilings.bandwidth / 1e9, bench.ceilings.matrix / 1e9
        print(f"ceilings: {bandwidth:.1f} GB/s, {matrix:.0f} GFLOP/s", flush=True)
        for row in rows:
            try:
                result = row.measure(bench)
            except WorkerError as error:
                result = {"error": str(error)}
            print("\n".join(described(row.name, result)), flush=True)
            if options.write:
                keep(row.name, result | {"ceilings": bench.measured})
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


def read() -> dict[str, Any]:
    """What was measured before: the row's name -> its figures."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}


def keep(name: str, result: dict[str, Any]) -> None:
    """Put one row's figures into the file, and draw the picture anew."""
    known = read() | {name: result}
    ordered = {row.name: known[row.name] for row in ROWS if row.name in known}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    with contextlib.suppress(ImportError):
        picture(ordered, PICTURE)


if __name__ == "__main__":
    raise SystemExit(main())
