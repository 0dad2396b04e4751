"""Tensors under canonical names -> a checkpoint folder in any format, in one file or several."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conversion import digests, naming, orbax_names
from conversion.folder import write_folder
from conversion.formats import FORMATS, Format, is_weights
from conversion.formats.files import write_text
from conversion.projection import PROJECTION_FILE
from conversion.rules import Computed, Tied
from conversion.tables import Table, table_of
from conversion.tensors import Tensor
from ved_core.configs import Config
from ved_core.digests import FILE as DIGESTS_FILE
from ved_core.digests import Digests
from ved_core.errors import CheckpointError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


TEXTS = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken")
"""How the names of files end that travel with the weights: processor, tokenizer, what is written about the model."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a checkpoint holds, by the names of the table of its config."""

    tensors: Mapping[str, Tensor]
    config: Config
    projection: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Of a decoder by itself: what stood before its cross-attention, by stored names, or nothing."""


def write(
    folder: Path,
    stored: Stored,
    texts: Mapping[str, str | bytes],
    to: str = "safetensors",
    shard_size: int | str | None = None,
    *,
    beside: bool = False,
) -> None:
    """Write weights in the format `to` and text files (name -> content) into `folder`, all of them or none.

    `shard_size`: the most bytes in one file, as a number or as "2GB"; one file by default. Weights that were there go,
    those in other formats too unless `beside`; all other files stay. Digests of what is written stand beside it.
    Raises OSError where the disk refuses, CheckpointError where the format is unknown, has not a dtype, or is never in
    several files.
    """
    each = checked_format(to, shard_size)
    limit = size(shard_size)

    def fill(part: Path) -> None:
        tensors = _write_weights(part, _named(stored, each), each, limit)
        if stored.projection:
            recorder = digests.Recorder()
            FORMATS["safetensors"].write(part / PROJECTION_FILE, recorder.wrapped(stored.projection))
            tensors[PROJECTION_FILE] = recorder.of(stored.projection)
        for name, content in texts.items():
            write_text(part / name, content)
        write_text(part / DIGESTS_FILE, Digests(digests.files(part), tensors).to_json())

    def stale(name: str) -> bool:
        return each.owns(name) if beside else is_weights(name) or name == PROJECTION_FILE

    write_folder(folder, fill, stale, digests.keep)


def texts_beside(folder: Path) -> dict[str, bytes]:
    """The texts beside a checkpoint's weights, by name."""
    entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    return {
        entry.name: entry.read_bytes()
        for entry in entries
        if entry.suffix in TEXTS and entry.is_file() and not is_weights(entry.name) and entry.name != DIGESTS_FILE
    }


def checked_format(name: str, shard_size: int | str | None) -> Format:
    """A format by its name. Raises CheckpointError where there is none, or it is never in several files."""
    if name not in FORMATS:
        raise CheckpointError(f"{name!r} is no format; known are {', '.join(FORMATS)}")
    if shard_size is not None and FORMATS[name].write_shard is None:
        raise CheckpointError(f"{FORMATS[name].title} divides its files by itself: leave the shard size out")
    return FORMATS[name]


def size(text: int | str | None) -> int | None:
    """A number of bytes from "2GB", "500MiB" or a number. Raises CheckpointError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", str(text).strip().upper())
    count = float(match[1]) * UNITS[match[2] or ""] if match else 0
    if count < 1:
        raise CheckpointError(f"shard size {text!r} should be a number of bytes, as 500MB or 2GB")
    return int(count)


def _named(stored: Stored, each: Format) -> dict[str, Tensor]:
    """The tensors as the format's files have them, with the buffers that its readers want."""
    table = table_of(stored.config)
    if each.name == "orbax":
        return orbax_names.from_torch(stored.tensors, table)
    buffers = {row.stored: row.compute() for row in table.rows if isinstance(row, Computed)}
    if each.name == "torch":
        return _with_copies(stored.tensors, table) | buffers
    if each.dialect is None:
        return dict(stored.tensors) | buffers
    if each.dialect == "hf_flax":
        buffers = {}  # no Flax class keeps any
    indices = {name: buffer.astype(np.int32) for name, buffer in buffers.items()}
    return naming.from_torch(dict(stored.tensors) | indices, table, stored.config, each.dialect)


def _with_copies(tensors: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Each tensor followed by what is tied to it: the same object, whose numbers are written once."""
    copies: dict[str, list[str]] = {}
    for row in table.rows:
        if isinstance(row, Tied) and row.expected and row.stored not in tensors:
            copies.setdefault(row.to, []).append(row.stored)
    return {each: tensor for name, tensor in tensors.items() for each in (name, *copies.get(name, ()))}


def _write_weights(
    folder: Path, tensors: Mapping[str, Tensor], each: Format, limit: int | None
) -> dict[str, dict[str, str]]:
    """Write one file or several; returns the digests of each one's tensors."""
    recorder = digests.Recorder()
    tensors = recorder.wrapped(tensors)
    shards = _shards(tensors, limit)

    def recorded(shard: Mapping[str, Tensor]) -> dict[str, str]:
        return {each.plain(name): digest for name, digest in recorder.of(shard).items()}

    if len(shards) == 1 or each.write_shard is None:
        each.write(folder / each.weights, tensors)
        return {each.weights: recorded(tensors)}
    files = [each.shard(i + 1, len(shards)) for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        each.write_shard(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    write_text(folder / each.index, json.dumps(index, indent=2) + "\n")
    return {file: recorded(shard) for file, shard in zip(files, shards, strict=True)}


def _shards(tensors: Mapping[str, Tensor], limit: int | None) -> list[dict[str, Tensor]]:
    """Tensors in order, in groups of at most `limit` bytes; a larger one is alone."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if limit is not None and shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards
