"""Where a checkpoint's weights are, in which format, and its tensors under PyTorch's names whatever that is."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from conversion import digests, naming
from conversion.folder import COMMIT, repair
from conversion.formats import FORMATS, Format, safetensors
from conversion.formats.files import sniffed
from conversion.formats.orbax import is_checkpoint
from conversion.names import listed
from conversion.orbax_names import to_torch as orbax_to_torch
from conversion.projection import PROJECTION_FILE
from conversion.tensors import Tensor
from ved_core import json_text, links
from ved_core.configs import CONFIG_FILE
from ved_core.configs.base import shorten
from ved_core.errors import CheckpointError

Wanted = Sequence[str] | None
"""Formats that are asked for, any by default."""
PYTORCH, FLAX, TENSORFLOW = ("safetensors", "torch"), ("flax",), ("tf",)
"""What from_pt, from_flax and from_tf ask for."""
TEXTS = (CONFIG_FILE, "generation_config.json")
"""What loading a model reads beside its weights."""
LONGEST_NAME = 255
"""Bytes in a file's name."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights. `place`: the file, the index of several, or Orbax's folder; `folder`: where its config is."""

    folder: Path
    format: Format
    place: Path

    def stored(self) -> dict[str, Tensor]:
        """All tensors as they are stored, views of mapped files or to be read when they are used.

        Raises CheckpointError naming the file that is damaged, or leads out of its folder.
        """
        return _read_shards(self) if self.place.name.endswith(".json") else self.format.read(self.place)

    def files(self) -> list[Path]:
        """The weights' files: one; an index and what it names; or all in Orbax's folder. Raises CheckpointError."""
        if self.place.is_dir():
            return sorted(path for path in self.place.rglob("*") if path.is_file())
        shards = _shards(self.place) if self.place.name.endswith(".json") else []
        return [self.place, *(self.place.parent / name for name in shards)]

    def check(self, texts: Iterable[str] = TEXTS) -> None:
        """Compare the files that loading reads, weights and `texts`, with their digests, where the folder has some.
        Raises CheckpointError naming the file that is not what was saved, and which tensors in it."""
        if self.place.parent != self.folder:  # Orbax's, with a config of its own inside
            return
        weights = [self.place] if self.place.is_dir() else self.files()
        names = {*(path.name for path in weights), *texts, PROJECTION_FILE}

        def read(path: Path) -> dict[str, Tensor]:
            each = FORMATS["safetensors"] if path.name == PROJECTION_FILE else self.format
            return {each.plain(name): tensor for name, tensor in each.read(path).items()}

        digests.check(self.folder, names, read)

    def named(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Some or all of `stored` under PyTorch's names and in its layouts. Raises CheckpointError, ConfigError."""
        if self.format.dialect is not None:
            return naming.to_torch(stored, self.format.dialect)
        if self.format.name == "orbax":
            return orbax_to_torch(stored, self.folder, self.place)
        if self.format.name == "safetensors":
            return _in_dialect(stored, self.place)
        return dict(stored)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under PyTorch's names and in its layouts. Raises CheckpointError, ConfigError."""
        return self.named(self.stored())


def find(place: Path, wanted: Wanted = None) -> Source:
    """The weights at a place, a checkpoint folder or a file, in the first format that is there of those `wanted`.

    Raises CheckpointError where none is, or it is of another format than its name says.
    """
    for name in wanted or ():
        if name not in FORMATS:
            raise CheckpointError(f"{name!r} is no format; known are {', '.join(FORMATS)}")
    folder = place if place.is_dir() else place.parent
    if folder.is_dir() and (link := links.leaving(folder, but=place)):
        raise CheckpointError(links.complaint(link))
    if place.is_file():
        return _of_file(place, wanted)
    if not place.is_dir():
        raise CheckpointError(f"{place}: no such folder or file")
    if is_checkpoint(place):
        return _checked(Source(_beside(place), FORMATS["orbax"], place), wanted)
    repair(place)
    found = found_in(place)
    for name in wanted or found:
        if name in found:
            return _checked(found[name], wanted)
    names = ", ".join(source.place.name for source in found.values()) or "no weights in any known format"
    what = f"no {titles(wanted)} weights are there, but {names}; leave out what asks for them" if wanted else names
    raise CheckpointError(f"{place}: {what}{'' if found else _hint(place)}")


def titles(wanted: Wanted) -> str:
    """Formats, as a person calls them."""
    return " or ".join(FORMATS[name].title for name in wanted or FORMATS)


def found_in(folder: Path) -> dict[str, Source]:
    """The formats that a folder has."""
    found = {}
    for each in FORMATS.values():
        for place in (folder / each.weights, folder / each.index):
            there = is_checkpoint(place) if each.name == "orbax" else place.is_file()
            if there and each.name not in found:
                found[each.name] = Source(folder, each, place)
    return found


def asked(from_pt: bool | None, from_flax: bool | None, from_tf: bool | None) -> Wanted:
    """The formats that the options of these names ask for."""
    options = ((from_pt, PYTORCH), (from_flax, FLAX), (from_tf, TENSORFLOW))
    return [name for option, names in options if option for name in names] or None


def _hint(folder: Path) -> str:
    """What else may have been meant, or why nothing is there."""
    entries = sorted(entry.name for entry in folder.iterdir())
    files = [name for name in entries if name.endswith((".pt", ".pth", ".ckpt", ".bin", ".msgpack", ".h5"))]
    files += [name for name in entries if name.endswith(".safetensors")]
    if any(name.endswith((".incomplete", ".part", ".tmp")) for name in entries) or (folder / COMMIT).exists():
        return "; a download or save was interrupted here: do it again"
    if files:
        return f"; for {listed(files)} give the file itself"
    return ""


def _of_file(place: Path, wanted: Wanted) -> Source:
    for each in FORMATS.values():
        if place.name == each.index:
            return _checked(Source(place.parent, each, place), wanted)
    content = sniffed(place)
    if content is None:
        raise CheckpointError(f"{place}: not a file of weights in any known format, or damaged")
    return _checked(Source(place.parent, FORMATS[content], place), wanted)


def _beside(place: Path) -> Path:
    """Where the config of an Orbax checkpoint is: in the folder itself, or beside it."""
    return place if (place / CONFIG_FILE).is_file() else place.parent


def _checked(source: Source, wanted: Wanted) -> Source:
    """The source, its content compared with its name."""
    if wanted and source.format.name not in wanted:
        raise CheckpointError(f"{source.place}: holds {source.format.title} weights, not {titles(wanted)} ones")
    if source.place.is_file() and not source.place.name.endswith(".json"):
        _check_content(source.place, source.format)
    return source


def _check_content(path: Path, expected: Format) -> None:
    content = sniffed(path)
    if content not in (expected.name, None):  # what is none of them is explained by its reader
        raise CheckpointError(
            f"{path}: holds {FORMATS[content].title} weights, though it is to be {expected.title}; "
            f"rename it to {FORMATS[content].weights}"
        )


def _read_shards(source: Source) -> dict[str, Tensor]:
    index = source.place
    shard_of = _shard_of(index)
    tensors: dict[str, Tensor] = {}
    for file in _shards(index):
        path = index.parent / file
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file, though {index.name} names it; download or copy it again")
        _check_content(path, source.format)
        shard = source.format.read(path)
        promised = {source.format.plain(name) for name, place in shard_of.items() if place == file}
        if (there := set(map(source.format.plain, shard))) != promised:
            wrong = sorted(there ^ promised)
            raise CheckpointError(f"{path}: index and shard disagree about {listed(wrong)}")
        tensors |= shard
    return tensors


def _shards(index: Path) -> list[str]:
    """The files that an index names. Raises CheckpointError where one would lie outside its folder."""
    names = sorted(set(_shard_of(index).values()))
    for file in names:
        inside = PurePosixPath(file).name == PureWindowsPath(file).name == file
        if not inside or "\0" in file or file in ("", "..") or len(os.fsencode(file)) > LONGEST_NAME:
            raise CheckpointError(
                f"{index}: shard {shorten(file)} lies outside its folder; shards stand beside their index"
            )
    return names


def _shard_of(index: Path) -> dict[str, str]:
    """Tensor -> file, as an index has them. Raises CheckpointError."""
    try:
        weight_map = json_text.read(index)["weight_map"]
        if not weight_map or not all(
            isinstance(file, str) and os.fsencode(file) is not None for file in weight_map.values()
        ):
            raise ValueError("weight_map should have a file for each tensor")
        return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a readable index with a weight_map ({error!r})") from None


def _in_dialect(stored: Mapping[str, Tensor], place: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors; Hugging Face's Flax and TensorFlow classes wrote some, under names of their own."""
    first = place
    if place.name.endswith(".json"):
        first = place.parent / min(_shard_of(place).values())
    kind = safetensors.layout(first)
    renamed: dict[str, tuple[Callable[[str], str], str]] = {
        "flax": (lambda name: name.replace(".", "/"), "hf_flax"),
        "tf": (lambda name: f"scope/{name}", "hf_tf"),
    }
    if kind not in renamed:
        return dict(stored)
    rename, dialect = renamed[kind]
    return naming.to_torch({rename(name): tensor for name, tensor in stored.items()}, dialect)  # type: ignore[arg-type]
