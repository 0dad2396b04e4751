"""Whole calls of generate(), encoder included."""

import functools

from benchmarks import floors, models
from benchmarks.bench import EAGER, PEERS, Bench
from benchmarks.rows.row import Result, Row, compared, limit

KINDS = {
    "greedy B=1": (1, 1, {"ved_flax": 0.50, "ved_torch": 0.75}),
    "beam 4 B=1": (1, 4, {"ved_flax": 0.35, "ved_torch": 0.50}),
    "greedy B=8": (8, 1, {"ved_flax": 0.45, "ved_torch": 0.70}),
    "beam 4 B=8": (8, 4, {"ved_flax": 0.50, "ved_torch": 0.60}),
}
"""Batch, beams, and the largest ratio to the best peer."""
TOO_LARGE = ("donut", "beam 4 B=8")
"""Here ONNX Runtime takes 15 GB, which leaves 24 GB too little for what is slower than it by far."""


def measure(model: str, kind: str, bench: Bench) -> Result:
    batch, beams, wanted = KINDS[kind]
    peers = [peer for peer in PEERS if peer != EAGER or (model, kind) != TOO_LARGE]
    result = compared(bench, model, "generate", {"batch": batch, "beams": beams}, peers)
    result["floor"] = floors.costs(model).generate(bench.ceilings, batch, beams, models.NEW_TOKENS)
    return limit(result, wanted)


ROWS = [Row(f"{model} {kind}", functools.partial(measure, model, kind)) for model in models.MODELS for kind in KINDS]
