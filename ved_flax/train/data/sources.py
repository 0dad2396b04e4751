"""`open_source`: the kind of a source, found by looking at its name."""

import glob
import re
from pathlib import Path

from ved_core.errors import DataError
from ved_flax.train.data.array_record import ArrayRecordSource
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.huggingface import HUB, HuggingFaceSource
from ved_flax.train.data.manifest import SUFFIXES, ManifestSource
from ved_flax.train.data.samples import Source
from ved_flax.train.data.shards import ShardSource

_RECORDS = (".array_record", ".arrayrecord")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 1_000_000
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def open_source(config: DataConfig, *, evaluation: bool = False) -> Source:
    """The samples of `config.source`, or of `config.evaluation_source`. Raises DataError naming the file and the fix.

    A split that is asked for of a source that has none is refused too.
    """
    field = "evaluation_source" if evaluation else "source"
    name = config.evaluation_source if evaluation else config.source
    split = config.evaluation_split if evaluation else config.split
    if not name:
        raise DataError(f"data.{field} is not set: name a manifest, a dataset's folder, hub:NAME, or shards")
    if name.startswith(HUB) or _is_saved_dataset(Path(name)):
        return HuggingFaceSource(name, config, split)
    if split is not None:
        raise DataError(f"{name}: only Hugging Face datasets have splits; leave data.split = {split} out")
    if name.startswith("pipe:") or "://" in name:
        raise DataError(f"{name}: only local files are read; mount or download it, and give its path")
    if Path(name).is_dir():
        found = [path for suffix in SUFFIXES if (path := Path(name, f"metadata{suffix}")).is_file()]
        if len(found) != 1:
            raise DataError(
                f"{name}: a folder with {len(found)} of metadata.csv, metadata.tsv and metadata.jsonl, and no saved "
                "dataset; give the manifest's path, or a pattern such as FOLDER/*.tar"
            )
        return ManifestSource(found[0], config)
    paths = _expanded(name)
    suffixes = {path.suffix for path in paths}
    if suffixes == {".tar"}:
        return ShardSource(paths, config)
    if suffixes and suffixes <= set(_RECORDS):
        return ArrayRecordSource(paths, config)
    if len(paths) == 1 and suffixes <= set(SUFFIXES):
        return ManifestSource(paths[0], config)
    raise DataError(
        f"{name}: of no known kind; a manifest ends in {', '.join(SUFFIXES)}, shards in .tar (uncompressed) or "
        f"{', '.join(_RECORDS)}, and a dataset on the hub is written hub:NAME"
    )


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in _SAVED)


def _expanded(name: str) -> list[Path]:
    """The files of a path, a glob pattern or a range, in order. Raises DataError where there is none."""
    paths = []
    for pattern in _ranges(name):
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise DataError(f"{pattern}: no such file" + (f", of {name}" if pattern != name else "; check its path"))
        paths += [Path(path) for path in found]
    return paths


def _ranges(name: str) -> list[str]:
    """`a{08..10}` as a08, a09, a10."""
    match = _RANGE.search(name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MOST_FILES:
        raise DataError(f"{name}: {match[0]} should count upwards, over at most {_MOST_FILES} files")
    width = len(match[1])
    numbers = [f"{number:0{width}d}" for number in range(first, last + 1)]
    return [whole for number in numbers for whole in _ranges(name[: match.start()] + number + name[match.end() :])]
