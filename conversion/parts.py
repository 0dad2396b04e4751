"""An encoder or a decoder out of a checkpoint that may hold more: other heads, another half, a whole model."""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from conversion import checkpoint, names
from conversion.checkpoint import Weights
from conversion.rules import AnyRow, Carried, Framework, Row
from conversion.source import Wanted
from conversion.tables import TABLES, WRAPPERS, Table, part_table, with_older_leaf
from conversion.tensors import Tensor
from ved_core.configs import CONFIG_FILE, DECODERS, ENCODERS, Config
from ved_core.configs.base import read_json
from ved_core.configs.model import part_config
from ved_core.errors import CheckpointError, ConfigError

Part = str
"""Either "encoder" or "decoder"."""

KINDS: dict[Part, tuple[str, dict[str, Any]]] = {
    "encoder": ("an image encoder", ENCODERS),
    "decoder": ("a text decoder", DECODERS),
}

JOINED = "encoder-decoder"
"""How the model_type of two joined halves ends: vision-, speech- and plain encoder-decoder."""

NEW: dict[str, frozenset[str]] = {
    "cross-attention": frozenset({"cross_attn", "norm_cross"}),
    "vocabulary head": frozenset({"transform", "head", "head_bias"}),
}
"""What a checkpoint may lack as a whole, and the parts of our paths that tell: language models have no cross-attention,
bare ones no head."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint folder as the source of one part. `config`: the part's own; `inside`: what stands before its names
    ("decoder." in a whole model); `wanted`: the formats that are asked for; `place`: the weights, where they are not
    to be looked for in the folder."""

    folder: Path
    part: Part
    config: Config
    inside: str = ""
    wanted: Wanted = None
    place: Path | None = None
    check_digests: bool | None = None


@dataclasses.dataclass(frozen=True)
class PartTensors:
    """What a source had for a part: parameters' and carried tensors, by their names in the part by itself."""

    tensors: Mapping[str, Tensor]
    new: Mapping[str, list[Row]]
    """What it had not and may lack, by kind."""
    left_out: list[str]
    """Stored names of what it had, and the config that was asked for has no longer."""
    ignored: list[str]
    """Stored names of what is no part of the model."""


@dataclasses.dataclass(frozen=True)
class PartWeights:
    """The same as a framework's parameters."""

    weights: Weights
    new: Mapping[str, list[Row]]
    left_out: list[str]
    ignored: list[str]


def open_source(
    folder: Path,
    part: Part,
    wanted: Wanted = None,
    place: Path | None = None,
    config: Path | None = None,
    check_digests: bool | None = None,
) -> Source:
    """Read which encoder or decoder a folder's config.json describes, or the file `config` in its place.

    Raises ConfigError where there is none, one that is not supported, or only the other half.
    """
    path = config or folder / CONFIG_FILE
    values: Mapping[str, Any] = read_json(path)
    inside = ""
    model_type = values.get("model_type")
    if isinstance(model_type, str) and model_type.endswith(JOINED):
        inside = f"{part}."
        half = values.get(part)
        if not isinstance(half, Mapping):
            raise ConfigError(f"{path}: this {model_type} describes no {part}; give a checkpoint that has one")
        values = half
    try:
        return Source(folder, part, checked_part(values, part), inside, wanted, place, check_digests)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def checked_part(values: Any, part: Part) -> Config:
    """A part's config from a config object or dict. Raises ConfigError, for the other half's with advice."""
    model_type = values.get("model_type") if isinstance(values, Mapping) else getattr(values, "model_type", None)
    for other, (kind, known) in KINDS.items():
        if other != part and isinstance(model_type, str) and model_type in known:
            raise ConfigError(f"{model_type} is {kind}; it cannot be the {part}: give it as the {other}")
    return part_config(values, part, KINDS[part][1])


def overridden(config: Config, fields: Mapping[str, Any], part: Part) -> Config:
    """A copy of a part's config with other values of some fields. Raises ConfigError for a field that it has not."""
    values = config.to_dict()
    known = {*values, *config.aliases}
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"; did you mean {part}_{close[0]}?" if close else ""
            raise ConfigError(f"{part}_{name}: {type(config).__name__} has no field {name!r}{advice}")
    # A derived value would contradict the new fields, and so would a second spelling of one.
    changed = {config.aliases.get(name, name) for name in fields} | set(config.get("derived", ()))
    kept = {name: value for name, value in values.items() if config.aliases.get(name, name) not in changed}
    try:
        return type(config).from_dict(kept | dict(fields))
    except ConfigError as error:
        raise ConfigError(f"{part}: {error}") from None


def read(source: Source, config: Config, framework: Framework) -> PartWeights:
    """A part's weights for `config`, the source's own or one changed from it. Raises CheckpointError as `read_stored`
    does."""
    found = read_stored(source, config)
    weights = checkpoint.to_weights(found.tensors, part_table(config), framework)
    return PartWeights(weights, found.new, found.left_out, found.ignored)


def read_stored(source: Source, config: Config) -> PartTensors:
    """A part's tensors for `config`, the source's own or one changed from it.

    Raises CheckpointError naming what is missing beyond `NEW`, what belongs to the part and is not understood, and what
    has another shape.
    """
    where = str(source.folder)
    tensors = checkpoint.read(source.place or source.folder, source.wanted, source.check_digests)
    table = part_table(config)
    wanted = _locate(tensors.keys(), table, source, config)
    own = wanted if config is source.config else _locate(tensors.keys(), part_table(source.config), source, config)
    unused = wanted.belonging - set(wanted.found.values())
    unexpected = sorted(unused - set(own.found.values()))
    rows = [row for row in table.rows if isinstance(row, Row)]
    lacking = [row for row in rows if row.stored not in wanted.found]
    promised = {row.stored for row in part_table(source.config).rows if isinstance(row, Row)}
    missing, new = _missing(lacking, [row for row in rows if row not in lacking], promised)
    if missing or unexpected:
        parts = [f"its {config.model_type} {source.part} misses {names.listed(missing)}"] if missing else []
        parts += [f"it holds {names.listed(unexpected)}, which its config.json does not describe"] if unexpected else []
        raise CheckpointError(f"{where}: {'; '.join(parts)}. Take weights and config.json from one checkpoint")
    kept = Table(tuple(row for row in table.rows if not (isinstance(row, Carried) and row.foreign)), table.prefixes)
    names.check_shapes(tensors, wanted.found, kept, where)
    names.check_ties(tensors, wanted.found, kept, where)
    found = {row.stored: row for row in kept.rows if row.stored in wanted.found}
    used = {wanted.found[name] for name in found}
    return PartTensors(
        {name: tensors[wanted.found[name]] for name, row in found.items() if isinstance(row, Row | Carried)},
        new,
        left_out=sorted(unused),
        ignored=sorted(tensors.keys() - used - unused),
    )


@dataclasses.dataclass(frozen=True)
class _Located:
    found: dict[str, str]
    """Canonical name -> name in the file."""
    belonging: set[str]
    """Names in the file that are the part's, whether a row knows them or not."""


def _locate(stored: Collection[str], table: Table, source: Source, config: Config) -> _Located:
    """Find the rows under the one prefix that most of them have. Raises CheckpointError where none is there."""
    prefixes = TABLES[config.model_type].PREFIXES
    best: dict[str, str] = {}
    place = ("", "")
    for wrapper in WRAPPERS:
        for prefix in prefixes:
            found = _found_under(stored, table.rows, wrapper + source.inside, prefixes[0], prefix, str(source.folder))
            if len(found) > len(best):
                best, place = found, (wrapper + source.inside, prefix)
    if not best:
        raise CheckpointError(
            f"{source.folder}: none of its tensors is of the {config.model_type} {source.part} that its config.json "
            "describes. Take weights and config.json from one checkpoint"
        )
    belonging = _belonging(stored, table.rows, source, *place, prefixes[0])
    return _Located(names.with_stand_ins(best, table.rows), belonging)


def _found_under(
    stored: Collection[str], rows: Iterable[AnyRow], outer: str, canonical: str, prefix: str, where: str
) -> dict[str, str]:
    found = {}
    for row in rows:
        spelled = [s for s in with_older_leaf(_placed(row.stored, outer, canonical, prefix)) if s in stored]
        if len(spelled) > 1:
            raise CheckpointError(f"{where}: {row.stored} is stored twice, as {' and '.join(spelled)}")
        if spelled:
            found[row.stored] = spelled[0]
    return found


def _placed(name: str, outer: str, canonical: str, prefix: str) -> str:
    """A canonical name as it would be stored."""
    return outer + (prefix + name[len(canonical) :] if name.startswith(canonical) else name)


def _belonging(
    stored: Iterable[str], rows: Iterable[AnyRow], source: Source, outer: str, prefix: str, canonical: str
) -> set[str]:
    """The stored names that are the part's: all under a prefix of its own, or else those that begin with a word of its
    rows; and beside them (heads) those of modules that its rows have."""
    body = {row.stored[len(canonical) :].split(".")[0] for row in rows if row.stored.startswith(canonical)}
    modules = {row.stored.rpartition(".")[0] for row in rows if not row.stored.startswith(canonical)} - {""}
    names_inside = {name: name[len(outer) :] for name in stored if name.startswith(outer)}
    return {
        name
        for name, inside in names_inside.items()
        if source.inside
        or (inside.startswith(prefix) if prefix else inside.split(".")[0] in body)
        or inside.rpartition(".")[0] in modules
    }


def _missing(
    lacking: Iterable[Row], found: Iterable[Row], promised: Collection[str]
) -> tuple[list[str], dict[str, list[Row]]]:
    """What is lacking, as stored names that must not and rows that may: a kind of `NEW` is lacking as a whole, but for
    what the source's own config does not promise."""
    partly = {kind_of_new(row) for row in found}
    missing: list[str] = []
    new: dict[str, list[Row]] = {}
    for row in lacking:
        kind = kind_of_new(row)
        if kind is None or (kind in partly and row.stored in promised):
            missing.append(row.stored)
        else:
            new.setdefault(kind, []).append(row)
    return missing, new


def kind_of_new(row: Row) -> str | None:
    """Which kind of `NEW` a row is of."""
    words = set(row.paths[0].split("."))
    return next((kind for kind, marks in NEW.items() if words & marks), None)
