"""Attacks on our public functions and command line: `python -m tests.torture` (`make torture`) runs all of them.

Each module here that has an `ATTACK` is one; the others are what several share.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Literal

Verdict = Literal["refused", "survived", "failed"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one case ended: `refused` with a typed error of ours, `survived` with the right result, or `failed`; then
    `detail` says how, in one line or a traceback."""

    case: str
    verdict: Verdict
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One row of the table. `run(seed, count)` tries `count` cases, the same for the same seed; `at_least`: how many a
    whole run tries; `short`: how many the tests do, chosen over all kinds."""

    name: str
    at_least: int
    run: Callable[[int, int], Iterator[Outcome]]
    short: int = 8


def attacks() -> dict[str, Attack]:
    """Module name -> attack, in order of the modules' names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    loaded = {name: importlib.import_module(f"{__name__}.{name}") for name in modules}
    return {name: module.ATTACK for name, module in loaded.items() if hasattr(module, "ATTACK")}
