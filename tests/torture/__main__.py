"""`python -m tests.torture`: run the attacks and print a table; the exit status is 1 where one got through.

Every case that fails is printed as it does, with what repeats it.
"""

import argparse
import dataclasses
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.torture import Attack, Outcome, attacks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for."""
    known = attacks()
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--only", action="append", choices=known, help="this attack alone; may be given several times")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other cases of the same kinds (default: 0)")
    parser.add_argument("--short", action="store_true", help="a few cases of each, as in the tests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case's outcome")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.only or known:
        rows.append(row(name, known[name], options.seed, options.short))
        print(f"{name}: {rows[-1]['tried']} tried in {rows[-1]['seconds']} s", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    return 0 if all(each["passed"] for each in rows) else 1


def row(module: str, attack: Attack, seed: int, short: bool) -> dict[str, Any]:
    """One attack's outcomes, counted. It fails as a whole where a case does, or fewer are tried than are to be."""
    count = attack.short if short else attack.at_least
    began = time.monotonic()
    found: list[Outcome] = []
    for outcome in tried(attack, seed, count):
        found.append(outcome)
        if outcome.verdict == "failed":
            print(f"FAILED {module} --seed {seed}: {outcome.case}: {outcome.detail}", file=sys.stderr, flush=True)
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in ("refused", "survived", "failed")}
    return {
        "attack": attack.name,
        "asked": count,
        "tried": len(found),
        **counts,
        "passed": not counts["failed"] and len(found) >= count,
        "seconds": round(time.monotonic() - began, 1),
        "outcomes": [dataclasses.asdict(each) for each in found],
    }


def tried(attack: Attack, seed: int, count: int) -> Iterator[Outcome]:
    """The outcomes; what the attack itself raises is one that failed."""
    # What a shell starts in the background ignores it, and so would the processes that are interrupted here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield from attack.run(seed, count)
    except Exception:
        yield Outcome("the attack itself", "failed", traceback.format_exc())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| attack | asked at least | tried | refused | survived | failed |", "|---|---|---|---|---|---|"]
    columns = ("attack", "asked", "tried", "refused", "survived", "failed")
    return "\n".join([*lines, *("| " + " | ".join(str(each[name]) for name in columns) + " |" for each in rows)])


if __name__ == "__main__":
    sys.exit(main())
