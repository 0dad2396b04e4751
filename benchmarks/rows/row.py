"""`Row`: a line of the table and what measures it; `compared`: two kinds of sides, in turn."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.bench import OURS, Bench
from benchmarks.timing import in_turn, medians, ratio
from benchmarks.worker import WorkerError

Result = dict[str, Any]
"""JSON-ready: `unit`; `ours`: side -> its figures, `value`, and where there is a peer `ratio`, `least`, `most` of the
pairs, and `wanted`, the limit that was set; `peers`: side -> value or, in words, why there is none; `best`, the peer
that the ratios are to; `floor` and what it is `of`."""


MUCH = 2.0
"""Times as long as the fastest peer."""


class Row(NamedTuple):
    """`measure` takes the bench; it raises WorkerError where nothing could be measured."""

    name: str
    measure: Callable[[Bench], Result]


def compared(
    bench: Bench, model: str, call: str, arguments: dict[str, Any], peers: Iterable[str], ours: Iterable[str] = OURS
) -> Result:
    """One call of our sides and of those peers that can, in turn. A peer that fails is named with its reason; one that
    takes MUCH longer than another is not asked again and again."""
    runs: dict[str, Callable[[], float]] = {}
    skipped: dict[str, str] = {}
    for side in (*ours, *peers):
        try:
            worker = bench.worker(side, model)
            worker(call, **arguments)  # what it cannot do, it says now
        except WorkerError as error:
            if side in ours:
                raise
            bench.give_up(side, error)
            skipped[side] = str(error)
            continue
        runs[side] = lambda worker=worker: worker(call, **arguments)["seconds"]
    once = {side: run() for side, run in runs.items()}  # shapes that change may be compiled anew
    slow = {side for side in once if side not in ours and once[side] > MUCH * min(once[p] for p in peers if p in once)}
    times = in_turn({side: run for side, run in runs.items() if side not in slow}, bench.rounds)
    found = {side: once[side] for side in slow} | medians(times)
    measured = {side: found[side] for side in peers if side in found}
    best = min(measured, key=measured.__getitem__) if measured else None
    result: Result = {
        "unit": "s",
        "rounds": len(next(iter(times.values()))),
        "ours": {side: {"value": found[side]} for side in ours},
        "peers": measured | skipped,
        "best": best,
    }
    for side in ours if best else ():
        result["ours"][side] |= ratio(times[side], times[best])._asdict()
    return result


def limit(result: Result, wanted: dict[str, float], of: str = "median") -> Result:
    """The result with what should not be passed, by side, and whether it was: of the ratio, or of another figure."""
    for side, most in wanted.items():
        figures = result["ours"][side]
        figures |= {"wanted": most, "met": figures.get(of) is not None and figures[of] <= most}
    return result


def median_of(worker: Any, call: str, rounds: int, **arguments: Any) -> float:
    """Seconds, of one side alone, behind one call that does not count."""
    times = [worker(call, **arguments)["seconds"] for _ in range(rounds + 1)]
    return statistics.median(times[1:])
