"""What is in a checkpoint, tensor by tensor, without loading it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from conversion import names
from conversion.convert import Place, open_place, original_of
from conversion.formats import Format
from conversion.rules import AnyRow, Carried, Computed, Dropped, Row, Tied
from conversion.source import Source, Wanted
from conversion.tables import WRAPPERS, Table, table_of
from conversion.tensors import Tensor
from ved_core.configs import Config, VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Line:
    """One stored tensor. `role`: parameter, carried, buffer, copy or unexpected; `row`: the name that it matches, and
    what that becomes in our models."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    role: str
    row: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """A checkpoint's content."""

    place: Path
    format: Format
    architecture: str
    lines: list[Line]
    ties: list[str]
    """Second copies, stored or not, and what they are copies of."""
    missing: list[str]

    def count(self, role: str) -> int:
        """How many numbers the tensors of a role hold."""
        return sum(_size(line) for line in self.lines if line.role == role)


def _size(line: Line) -> int:
    return math.prod(line.shape)


def describe(
    source: Place,
    *,
    config: Place | None = None,
    wanted: Wanted = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Listing:
    """List a checkpoint (folder, file, or name on the hub): nothing but headers is read, or run. `config`: a
    config.json in place of the one beside the weights.

    Raises CheckpointError, ConfigError or HubError where it cannot be read; what does not fit its config is listed.
    """
    found, described = open_place(source, config=config, wanted=wanted, revision=revision, subfolder=subfolder)
    original = original_of(found, described)
    if original is not None:
        described = original.config
        stored: Mapping[str, Tensor] = original.file
        matched = {name: ("parameter" if rows else "buffer", ", ".join(rows)) for name, rows in original.became.items()}
        missing: list[str] = []
    else:
        if described is None:
            raise CheckpointError(f"{found.folder}: has no config.json that this library knows; give --config FILE")
        stored = found.stored()
        matched, missing = _matched(found, stored, table_of(described))
    ties = [f"{row.stored} = {row.to}" for row in table_of(described).rows if isinstance(row, Tied) and row.exact]
    lines = list(_lines(stored, matched))
    return Listing(found.place, found.format, architecture(described), lines, ties, missing)


def architecture(config: Config) -> str:
    """What a config describes, in one word or two."""
    if isinstance(config, VisionEncoderDecoderConfig):
        return f"{config.encoder.model_type} + {config.decoder.model_type}"
    return config.model_type


def _lines(stored: Mapping[str, Tensor], matched: Mapping[str, tuple[str, str]]) -> Iterator[Line]:
    for name, tensor in stored.items():
        role, row = matched.get(name, ("unexpected", ""))
        yield Line(name, str(tensor.dtype), tuple(tensor.shape), tensor.nbytes, role, row)


def _matched(found: Source, stored: Mapping[str, Tensor], table: Table) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Name in the file -> role and row, and the rows that nothing in the file is."""
    if found.format.name == "orbax":  # one tensor may be several arrays
        plain = {name: name for name in found.named(stored)}
    else:
        plain = {named: name for name, tensor in stored.items() for named in found.named({name: tensor})}
    rows: dict[str, AnyRow] = {}
    for wrapper in WRAPPERS:
        spelled = {wrapper + spelling: row for row in table.rows for spelling in table.spellings(row.stored)}
        here = {name: spelled[name] for name in plain if name in spelled}
        rows = max(rows, here, key=len)
    there = {row.stored for row in rows.values()}
    full = names.with_stand_ins({name: name for name in there}, table.rows)
    missing = [row.stored for row in table.rows if isinstance(row, Row) and row.stored not in full]
    matched = {plain[name]: (role(row), target(row)) for name, row in rows.items()}
    if found.format.name == "orbax":
        matched = {**_arrays_of(table), **matched}
    return matched, missing


def _arrays_of(table: Table) -> dict[str, tuple[str, str]]:
    """An Orbax tree's paths -> role and row."""
    paths: dict[str, tuple[str, str]] = {}
    for row in table.rows:
        if isinstance(row, Row):
            for name in row.names("flax"):
                paths[f"parameters/{name.replace('.', '/')}"] = ("parameter", f"{row.stored} -> {name}")
        elif isinstance(row, Carried):
            paths[f"carried/{row.stored}"] = ("carried", row.stored)
    return paths


def role(row: AnyRow) -> str:
    """What a row's tensor is to a model."""
    kinds = {Row: "parameter", Carried: "carried", Dropped: "buffer", Computed: "buffer", Tied: "copy"}
    return kinds[type(row)]


def target(row: AnyRow) -> str:
    """A row's stored name, and what it becomes."""
    if isinstance(row, Row):
        return f"{row.stored} -> {', '.join(row.paths)}"
    return f"{row.stored} = {row.to}" if isinstance(row, Tied) else row.stored
