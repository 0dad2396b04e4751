"""A train step, and what Python takes of a compiled step."""

import statistics

from benchmarks import floors, models, training
from benchmarks.bench import EAGER, Bench
from benchmarks.rows.row import Result, Row, compared, limit

LEAVES = 400


def step(bench: Bench) -> Result:
    """Forward, backward and AdamW, beside transformers' on PyTorch."""
    result = compared(bench, models.TRAINED, "train", {}, [EAGER], ["ved_flax"])
    result["floor"] = bench.ceilings.seconds(0, floors.train_flops(models.TRAINED, training.BATCH, training.TOKENS))
    figures = result["ours"]["ved_flax"]
    figures["share"] = result["floor"] / figures["value"]
    limit(result, {"ved_flax": 0.7})
    figures["met"] = figures["met"] and figures["share"] >= 0.7
    return result


def dispatch(bench: Bench) -> Result:
    """Of one call, behind thousands; the median of several times so many."""
    with bench.fresh("ved_flax", "tiny") as worker:
        values = [worker("dispatch", leaves=LEAVES, calls=300) for _ in range(9)]
    result: Result = {"unit": "s", "rounds": len(values), "ours": {"ved_flax": {"value": statistics.median(values)}}}
    return limit(result | {"peers": {}}, {"ved_flax": 0.6e-3}, "value")


ROWS = [
    Row("train step, ViT-S + 6-layer GPT-2, B=8", step),
    Row(f"dispatch of {LEAVES} leaves", dispatch),
]
