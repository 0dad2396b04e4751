"""What stands in a compiled program's text (optimised HLO): its operations, how often each runs, and where in the
source it comes from."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+)(?: \(.*)? \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_NAME = re.compile(r"%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_CONSTANT = re.compile(r"^(\d+)\)")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array's element type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Without padding to tiles."""
        digits = re.search(r"\d+", self.dtype)
        bits = 8 if self.dtype == "pred" else int(digits[0]) if digits else 0
        return math.prod(self.shape) * bits / 8


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program."""

    name: str
    code: str
    """What it does, as fusion, copy or all-reduce."""
    results: tuple[Array, ...]
    operands: tuple[Array, ...]
    times: int
    """How often a call of the program runs it."""
    text: str
    """All that follows its code."""

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern that is found in its text."""
        found = re.search(pattern, self.text)
        return found[1] if found else None

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one time; None where it makes none."""
        found = self.attribute(r'"estimated_cycles":"(\d+)"')
        return None if found is None else int(found)

    @property
    def target(self) -> str | None:
        """What a custom call calls."""
        return self.attribute(r'custom_call_target="([^"]*)"') if self.code == "custom-call" else None

    @property
    def path(self) -> str:
        """The JAX functions that it is of, as jit(run)/transpose(jvp())/dot_general."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def collective(self) -> str | None:
        """One of COLLECTIVES; None for what ends one that runs beside others, too."""
        code = self.code.removesuffix("-start")
        return code if code in COLLECTIVES else None

    @property
    def moved(self) -> float:
        """Bytes of a collective's whole array: of all parts together for an all-gather, of one summand for a sum."""
        return sum(array.bytes for array in self.operands) * (self.group if self.collective == "all-gather" else 1)

    @property
    def group(self) -> int:
        """How many devices take part in a collective together."""
        if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", self.text):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
        if counted := self.attribute(r"replica_groups=\[\d+,(\d+)\]"):
            return int(counted)
        listed = self.attribute(r"replica_groups=\{\{([\d,]*)\}") or self.attribute(
            r"source_target_pairs=\{\{([\d,]*)\}"
        )
        return len(listed.split(",")) if listed else 1


@dataclasses.dataclass(frozen=True)
class Frame:
    """A line of source."""

    file: str
    line: int
    function: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A program's operations, each once, and its frames: number -> (frame, number of what called it, 0 for nothing)."""

    operations: tuple[Operation, ...]
    frames: Mapping[int, tuple[Frame, int]]
    open_loops: int
    """Loops that do not say how often they run."""

    def collectives(self) -> list[Operation]:
        """Each once, however many operations it runs beside: those have its channel in common."""
        found: dict[str, Operation] = {}
        for operation in self.operations:
            if operation.collective:
                key = operation.attribute(r"\bchannel_id=(\d+)") or operation.name
                if key not in found or operation.times > found[key].times:
                    found[key] = operation
        return list(found.values())

    def source(self, operation: Operation, package: str) -> Frame | None:
        """The innermost line of a package (a folder's name) that an operation comes from."""
        number = int(operation.attribute(r"\bstack_frame_id=(\d+)") or 0)
        while number in self.frames:
            frame, caller = self.frames[number]
            number = min(caller, number - 1)  # callers come first
            if f"/{package}/" in frame.file and "/site-packages/" not in frame.file.partition(f"/{package}/")[2]:
                return frame
        return None


def parse(text: str, loops: int = 1) -> Program:
    """A program from the text of `Compiled.as_text()`; `loops`: how often a loop runs whose count is not known."""
    lines: dict[str, list[re.Match[str]]] = {}
    entry, inside = "", ""
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            inside = begins[2]
            entry = inside if begins[1] else entry
            lines[inside] = []
        elif inside and (operation := _OPERATION.match(line)):
            lines[inside].append(operation)
    times: dict[str, int] = {}
    if entry:
        _count(lines, entry, 1, loops, times)
    operations = [op for name, count in times.items() for op in _operations(lines[name], count)]
    loose = [op for op in operations if op.code == "while" and _trips(lines, op.text) is None]
    return Program(tuple(operations), _frames(text), len(loose))


def _trips(lines: Mapping[str, list[re.Match[str]]], loop: str) -> int | None:
    """How often a loop runs: as the compiler says, or as a condition tells that compares a counter with a constant."""
    if known := _TRIPS.search(loop):
        return int(known[1])
    condition = _CONDITION.search(loop)
    inside = lines.get(condition[1], []) if condition else []
    constants = {
        match[1]: int(found[1]) for match in inside if (found := _CONSTANT.match(match[4])) and match[3] == "constant"
    }
    if inside and inside[-1][3] == "compare" and "direction=LT" in inside[-1][4]:
        compared = _NAME.findall(inside[-1][4][: _closing(inside[-1][4])])
        return constants.get(compared[-1])
    return None


def _count(lines: Mapping[str, list[re.Match[str]]], name: str, by: int, loops: int, times: dict[str, int]) -> None:
    """How often a computation, and each that it calls, is run."""
    times[name] = times.get(name, 0) + by
    for _, _, code, rest in (match.groups() for match in lines[name]):
        trips = _trips(lines, rest) if code == "while" else 1
        count = by * (loops if trips is None else trips)
        branches = _BRANCHES.search(rest)
        called = [*_CALLED.findall(rest), *(_NAME.findall(branches[1]) if branches else ())]
        for inner in called:
            if inner in lines:
                _count(lines, inner, count, loops, times)


def _operations(matches: list[re.Match[str]], times: int) -> Iterator[Operation]:
    shapes = {match[1]: arrays(match[2]) for match in matches}
    for name, _, code, rest in (match.groups() for match in matches):
        given = _NAME.findall(rest[: _closing(rest)])
        operands = tuple(array for operand in given for array in shapes.get(operand, ()))
        yield Operation(name, code, shapes[name], operands, times, rest)


def _closing(text: str) -> int:
    """Where the bracket closes that was opened before a text."""
    depth = 1
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place
    return len(text)


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, as f32[2,3]{1,0} or a tuple of such."""
    found = _ARRAY.findall(text)
    return tuple(Array(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in found)


def _frames(text: str) -> dict[int, tuple[Frame, int]]:
    """The tables of source lines that a program's text begins with."""
    rows: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in text.splitlines():
        if line in _TABLES:
            table = rows.setdefault(line, {})
        elif cells := re.match(r"^(\d+) (.*)$", line):
            table[int(cells[1])] = cells[2]
    if len(rows) < len(_TABLES):
        return {}
    files, functions, locations, frames = (rows[name] for name in _TABLES)
    found: dict[int, tuple[Frame, int]] = {}
    for number, row in frames.items():
        inner = _numbers(row)
        place = _numbers(locations[inner["file_location_id"]])
        file, function = files[place["file_name_id"]].strip('"'), functions[place["function_name_id"]].strip('"')
        # Callers are written one higher than they are numbered: the outermost frame, 1, calls itself.
        found[number] = Frame(file, place["line"], function), inner.get("parent_frame_id", 1) - 1
    return found


def _numbers(row: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", row)}
