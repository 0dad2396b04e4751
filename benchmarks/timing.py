"""Medians of runs that alternate, and their ratios pair by pair."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

BUDGET = 60.0
"""Seconds that the rounds of a row may take together, where that leaves 3."""
FEWEST, MOST = 3, 9
PAUSE = 0.5
"""Seconds before each run: threads of the one before keep a core busy for up to 0.2, waiting for more to do."""


class Ratio(NamedTuple):
    """Of the pairs of a run: the median, the smallest and the largest."""

    median: float
    least: float
    most: float


def alternating(runs: Mapping[str, Callable[[], float]], rounds: int | None = None) -> dict[str, list[float]]:
    """Every run in turn, behind one that compiles what there is to compile; the seconds that each reports. As many
    `rounds` as BUDGET allows, where their number is not given."""
    for run in runs.values():
        run()
    return in_turn(runs, rounds)


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int | None = None) -> dict[str, list[float]]:
    """`alternating` of runs that have compiled."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    wanted = MOST if rounds is None else rounds
    while len(next(iter(found.values()))) < wanted:
        for name, run in runs.items():
            time.sleep(PAUSE)
            found[name].append(run())
        if rounds is None:
            once = sum(times[-1] for times in found.values())
            wanted = min(MOST, max(FEWEST, int(BUDGET / once)))
    return found


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}
