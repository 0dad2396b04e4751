"""The parts of a call: the encoder beside the matrix rate, a decoding step beside the bandwidth, and how both grow."""

import functools
import statistics

from benchmarks import floors, models
from benchmarks.bench import COMPILED, EAGER, ONNX, OURS, Bench
from benchmarks.rows.row import Result, Row, compared, limit, median_of

ROUNDS = 5
SHARE = 0.85
"""Of the matrix rate that an encoder should reach."""
OVER = 1.25
"""Times its floor that a step may take."""
ROOM = 1.2
"""Times weights and caches that a call may need."""


def encoder(model: str, batch: int, bench: Bench) -> Result:
    """Beside the time at the measured matrix rate; `share` of it."""
    result = compared(bench, model, "encode", {"batch": batch}, (EAGER, COMPILED, ONNX))
    result["floor"] = floors.costs(model).encode(bench.ceilings, batch)
    for figures in result["ours"].values():
        figures["share"] = result["floor"] / figures["value"]
        figures |= {"wanted": SHARE, "met": figures["share"] >= SHARE}
    return result


def step(model: str, bench: Bench) -> Result:
    """What one more token costs at B=1: of calls of 8 and of 40 new tokens, in turn."""
    first, last = 8, 40
    sides = (*OURS, EAGER)
    values: dict[str, float] = {}
    for side in sides:
        worker = bench.worker(side, model)
        for new in (first, last):
            worker("generate", batch=1, new=new)
        pairs = [[worker("generate", batch=1, new=new)["seconds"] for new in (first, last)] for _ in range(ROUNDS)]
        values[side] = statistics.median((long - short) / (last - first) for short, long in pairs)
    floor = floors.costs(model).step(bench.ceilings, 1, 1, (first + last) // 2)
    ours = {side: {"value": values[side], "over": values[side] / floor} for side in OURS}
    result = {"unit": "s", "rounds": ROUNDS, "ours": ours, "peers": {EAGER: values[EAGER]}, "floor": floor}
    return limit(result, dict.fromkeys(OURS, OVER), "over")


def growth(model: str, bench: Bench) -> Result:
    """Time per token of calls of up to 512 tokens, encoder left out, and the last over the first."""
    lengths = (1, 33, 129, 512)
    ours = {}
    for side in OURS:
        worker = bench.worker(side, model)
        times = [median_of(worker, "generate", 3 if new > 200 else ROUNDS, batch=1, new=new) for new in lengths]
        steps = zip(times, times[1:], lengths, lengths[1:], strict=False)
        each = [(late - early) / (more - fewer) for early, late, fewer, more in steps]
        ours[side] = {"value": each[-1], "each": dict(zip(map(str, lengths[1:]), each, strict=True))}
        ours[side]["over"] = each[-1] / each[0]
    return {"unit": "s", "rounds": 3, "ours": ours, "peers": {}}


def batches(model: str, bench: Bench) -> Result:
    """Time per image of the encoder, at 1 to 8 images, and the last over the first."""
    sizes = (1, 2, 4, 8)
    ours = {}
    for side in OURS:
        worker = bench.worker(side, model)
        each = [median_of(worker, "encode", ROUNDS, batch=batch) / batch for batch in sizes]
        ours[side] = {
            "value": each[-1],
            "each": dict(zip(map(str, sizes), each, strict=True)),
            "over": each[-1] / each[0],
        }
    return {"unit": "s", "rounds": ROUNDS, "ours": ours, "peers": {}}


def memory(model: str, bench: Bench) -> Result:
    """The peak of one call beside weights and caches."""
    batch, beams, new = 8, 4, models.NEW_TOKENS
    sizes = floors.costs(model)
    floor = sizes.total_bytes + sizes.caches(batch, beams, new)
    values = {}
    for side in (*OURS, EAGER):
        with bench.fresh(side, model) as worker:
            values[side] = worker("memory", batch=batch, beams=beams, new=new)
    ours = {side: {"value": values[side], "over": values[side] / floor} for side in OURS}
    result = {"unit": "bytes", "rounds": 1, "ours": ours, "peers": {EAGER: values[EAGER]}, "floor": floor}
    return limit(result, dict.fromkeys(OURS, ROOM), "over")


ROWS = [
    *(
        Row(f"{model} encoder B={batch}", functools.partial(encoder, model, batch))
        for model in models.MODELS
        for batch in (1, 8)
    ),
    *(Row(f"{model} decode step B=1", functools.partial(step, model)) for model in models.MODELS),
    Row("vit-gpt2 time per token up to 512", functools.partial(growth, "vit-gpt2")),
    Row("vit-gpt2 encoder per image up to B=8", functools.partial(batches, "vit-gpt2")),
    Row("vit-gpt2 memory, beam 4 B=8", functools.partial(memory, "vit-gpt2")),
]
