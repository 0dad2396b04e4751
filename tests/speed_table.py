"""README's table of speed, from what `python -m benchmarks.speed --write` measured."""

import json

from benchmarks.table import table as rendered
from tests.cases import ROOT


def table() -> str:
    """One line for each row, and the ceilings."""
    results = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text(encoding="utf-8"))
    if not results:
        return "No figures are kept: `make bench` measures them."
    rates = [result["ceilings"] for result in results.values() if "ceilings" in result]
    reached = {
        name: f"{min(rate[name] for rate in rates) / 1e9:.0f} to {max(rate[name] for rate in rates) / 1e9:.0f}"
        for name in ("bandwidth", "matrix")
    }
    below = f"Measured ceilings: {reached['bandwidth']} GB/s and {reached['matrix']} GFLOP/s in float32."
    return f"{rendered(results)}\n\n{below}"
