"""What a program compiled for a TPU costs there, by the compiler's own account: memory, operations, traffic, time."""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ved_flax.aot.flops import flops
from ved_flax.aot.hlo import Operation, Program, parse
from ved_flax.aot.topology import Chip

PACKAGE = "ved_flax"
COSTLIEST = 10
MOST_KERNELS = 0.05
"""Share of the time from which on what kernels are taken for makes the whole a lower bound."""
FREE = frozenset(
    (
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveDone",
        "AsyncCollectiveStart",
        "ConcatBitcast",
        "GatherScatterIndicesBitpacked",
        "Sharding",
    )
)
"""Custom calls by which the compiler talks to itself: they compute nothing."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip."""

    arguments: int
    outputs: int
    """Those beside the arguments' own memory."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of a kind between equally many chips."""

    kind: str
    chips: int
    count: int
    bytes: float
    """See `Operation.moved`."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations of a kind that come from one line."""

    source: str
    """file:line function; empty where it is none of ours."""
    what: str
    """As forward dot_general."""
    count: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Numbers of one chip, in one call of a program."""

    memory: Memory
    fits: bool
    flops: float
    """Of matrix products, loops counted in full."""
    compiler_flops: float
    """Of all, by the compiler's count: a loop's body once, kernels not at all."""
    seconds: float
    """By the compiler's estimate; waiting for collectives is not in it, nor for memory that is read ahead."""
    read_seconds: float
    """The least that reading all arguments once takes, which is done beside the rest."""
    mfu: float
    kernels: int
    """Custom calls that compute, of which the compiler makes no estimate."""
    kernel_seconds: float
    """Their part in `seconds`: the least that their shapes need."""
    lower_bound: bool
    """Whether that part is large."""
    open_loops: int
    traffic: tuple[Traffic, ...]
    costliest: tuple[Cost, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def make_report(compiled: Any, chip: Chip, loops: int = 1) -> Report:
    """Of a `jax.stages.Compiled`; `loops`: how often loops run that do not say it."""
    used = compiled.memory_analysis()
    memory = Memory(
        used.argument_size_in_bytes,
        used.output_size_in_bytes - used.alias_size_in_bytes,
        used.temp_size_in_bytes,
        used.generated_code_size_in_bytes,
    )
    counted = (compiled.cost_analysis() or {}).get("flops", 0.0)
    return analysed(parse(compiled.as_text(), loops), memory, counted, chip)


def analysed(program: Program, memory: Memory, compiler_flops: float, chip: Chip) -> Report:
    """A report from a program's operations."""
    kernels = [op for op in program.operations if op.target is not None and op.target not in FREE]
    kernel_seconds = sum(op.times * kernel_time(op, chip) for op in kernels)
    seconds = kernel_seconds + sum(op.times * (op.cycles or 0) for op in program.operations) / chip.clock
    computed = sum(op.times * (attention_flops(op) if op in kernels else flops(op)) for op in program.operations)
    traffic: dict[tuple[str, int], list[Operation]] = collections.defaultdict(list)
    for op in program.collectives():
        traffic[str(op.collective), op.group].append(op)
    return Report(
        memory,
        memory.total <= chip.memory,
        computed,
        compiler_flops,
        seconds,
        memory.arguments / chip.bandwidth,
        computed / (seconds * chip.flops) if seconds else 0.0,
        sum(op.times for op in kernels),
        kernel_seconds,
        kernel_seconds > MOST_KERNELS * seconds,
        program.open_loops,
        tuple(
            Traffic(kind, chips, sum(op.times for op in ops), sum(op.times * op.moved for op in ops))
            for (kind, chips), ops in sorted(traffic.items())
        ),
        tuple(costliest(program, chip)),
    )


def kernel_time(kernel: Operation, chip: Chip) -> float:
    """The least seconds that a kernel can take: to read and write its arrays, or to compute."""
    moved = sum(array.bytes for array in (*kernel.operands, *kernel.results))
    return max(attention_flops(kernel) / chip.flops, moved / chip.bandwidth)


def attention_flops(kernel: Operation) -> float:
    """Of a kernel whose first three arrays can be queries (..., T, H), keys and values (..., S, H); 0 for others."""
    shapes = [array.shape for array in kernel.operands[:3]]
    if len(shapes) < 3 or min(map(len, shapes)) < 3:
        return 0.0
    q, k, v = shapes
    alike = k == v and q[-1] == k[-1] and q[:-2] == k[:-2]
    return 4.0 * math.prod(q) * k[-2] if alike else 0.0


def costliest(program: Program, chip: Chip, most: int = COSTLIEST) -> list[Cost]:
    """What takes the most time, the same operations of one line (those of all layers) together."""
    seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    counts: dict[tuple[str, str], int] = collections.defaultdict(int)
    for op in program.operations:
        if op.target is not None and op.target not in FREE:
            each = kernel_time(op, chip)
        else:
            each = (op.cycles or 0) / chip.clock
        if each:
            key = source(program, op), what(op)
            seconds[key] += op.times * each
            counts[key] += op.times
    ranked = sorted(seconds, key=lambda key: -seconds[key])[:most]
    return [Cost(*key, counts[key], seconds[key]) for key in ranked]


def source(program: Program, operation: Operation) -> str:
    """Where an operation comes from, as ved_flax/layers/mlp.py:31 Mlp.__call__."""
    frame = program.source(operation, PACKAGE)
    if frame is None:
        return ""
    file = f"{PACKAGE}/{frame.file.rpartition(f'/{PACKAGE}/')[2]}"
    return f"{file}:{frame.line} {frame.function.replace('.<locals>', '')}"


def what(operation: Operation) -> str:
    """An operation in JAX's words, and which way it goes."""
    _, inside, name = operation.path.rpartition("/")
    if not inside:  # the name of an argument, or none
        name = operation.target or operation.code
    return f"backward {name}" if "transpose(" in operation.path else name


def lines(report: Report, chip: Chip) -> Iterator[str]:
    """A report to be read."""
    memory = report.memory
    verdict = "fits" if report.fits else "DOES NOT FIT"
    yield (
        f"memory of a chip: {size(memory.total)} of {size(chip.memory)}, {verdict} "
        f"(arguments {size(memory.arguments)}, "
        f"temporaries {size(memory.temporaries)}, new outputs {size(memory.outputs)}, code {size(memory.code)})"
    )
    yield (
        f"operations of a chip: {report.flops / 1e12:.3f} TFLOP in matrix products (the compiler counts "
        f"{report.compiler_flops / 1e12:.3f} in all, each loop's body once)"
    )
    bound = "at least " if report.lower_bound else ""
    yield (
        f"estimated time: {bound}{report.seconds * 1e3:.3f} ms, MFU {'at most ' if bound else ''}{report.mfu:.1%}; "
        f"waiting for collectives is not in it, {report.kernels} kernels are with {report.kernel_seconds * 1e3:.3f} ms"
    )
    yield f"reading all arguments: at least {report.read_seconds * 1e3:.3f} ms, beside the rest"
    if report.open_loops:
        yield f"loops of unknown length: {report.open_loops}"
    yield "collectives:" if report.traffic else "collectives: none"
    for each in report.traffic:
        yield f"  {each.count:5} x {each.kind} of {each.chips} chips, {size(each.bytes)}"
    yield "costliest operations:"
    for cost in report.costliest:
        share, where = cost.seconds / report.seconds, cost.source or "not from here"
        yield f"  {cost.seconds * 1e3:8.3f} ms {share:6.1%} {cost.count:5} x {cost.what}, {where}"


def size(count: float) -> str:
    """Bytes to be read."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= one:
            return f"{count / one:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
