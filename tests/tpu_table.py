"""README's table of what programs cost on TPUs, from what `make tpu-check` wrote."""

import json
from collections.abc import Mapping
from typing import Any

from tests.cases import ROOT

GIB = 2**30


def table() -> str:
    """One line for each program that was compiled."""
    results = json.loads((ROOT / "benchmarks" / "results" / "tpu.json").read_text(encoding="utf-8"))
    lines = [
        "| model | program | TPU | GiB a chip | TFLOP a chip | ms | MFU | collectives |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for name, numbers in results.items():
        model, program, chips, mesh = name.split(", ")
        place = chips if mesh == "data=1" else f"{chips}, {mesh.removeprefix('data=1 ')}"
        lines.append(f"| {model} | {program} | {place} | {' | '.join(cells(numbers))} |")
    return "\n".join(lines)


def cells(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """Of one program; one that does not fit has a reason only."""
    if "error" in numbers:
        return ("does not fit", *[""] * 4)
    memory = sum(numbers["memory"].values()) / GIB
    least, most = ("≥ ", "≤ ") if numbers["lower_bound"] else ("", "")
    return (
        f"{memory:.2f}" if numbers["fits"] else f"{memory:.2f}: does not fit",
        f"{numbers['flops'] / 1e12:.3f}",
        f"{least}{numbers['seconds'] * 1e3:.2f}",
        f"{most}{numbers['mfu']:.1%}",
        ", ".join(f"{each['count']} {each['kind']} ({each['bytes'] / GIB:.2f} GiB)" for each in numbers["traffic"]),
    )
