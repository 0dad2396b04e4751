"""Samples in webdataset shards: tar files in which the members of a sample follow each other and share a name.

A tar file is read from its beginning to its end by design. Its headers are scanned once, for each member's place; from
then on every sample is reached directly, so that shards are shuffled, split over processes and resumed like any other
source.
"""

import contextlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ved_core.errors import DataError, SampleError
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.samples import MOST_BYTES, Sample, Strings, digest, texts_of

IMAGES = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "gif", "ppm", "jp2", "avif")
_BLOCK = 512
_VERSION = "1"


class Place(NamedTuple):
    """Where a member's content is: offset and size in its shard; size -1 where the sample lacks it."""

    offset: int = 0
    size: int = -1


class ShardSource:
    """Samples of local shards, in the shards' order.

    A sample without image or text is a bad sample. Raises DataError for a shard that is no plain tar file, or damaged:
    how many samples it has lost cannot be known.
    """

    def __init__(self, paths: Sequence[Path], config: DataConfig) -> None:
        self.paths = [str(path) for path in paths]
        self.images = (config.image_column.lower(),) if config.image_column else IMAGES
        self.text, self.id = config.text_column, config.id_column
        self.ids = Strings(())
        rows: list[tuple[int, ...]] = []
        for shard, path in enumerate(paths):
            for key, members in _samples(indexed(path, index_folder(config))):
                image = next((members[name] for name in self.images if name in members), Place())
                text = members.get("txt" if self.text is None else self.text.lower(), Place())
                rows.append((shard, *image, *text, *members.get("json", Place())))
                self.ids.append(key)
        if not rows:
            raise DataError(f"{paths[0]}: no samples in {len(paths)} shard(s); a member is called KEY.EXTENSION")
        self.places = np.array(rows, np.int64)
        self.fingerprint = digest(self.ids.buffer, self.places)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        shard, *numbers = self.places[index].tolist()
        image, text, record = (Place(*numbers[i : i + 2]) for i in (0, 2, 4))
        path, key = self.paths[shard], self.ids[index]
        try:
            if image.size < 0:
                raise SampleError(f"no image ({', '.join(self.images)})")
            content = _read(path, image)
            values = _record(path, record) if self.id or text.size < 0 else {}
            texts = (_read(path, text).decode(),) if text.size >= 0 else texts_of(self._value(values))
            return Sample(str(values[self.id]) if self.id else key, content, texts)
        except SampleError as error:
            raise SampleError(f"{path}, {key}: {error}") from None
        except UnicodeDecodeError as error:
            raise SampleError(f"{path}, {key}: its text is not UTF-8 ({error.reason})") from None
        except KeyError:
            raise SampleError(f"{path}, {key}: no {self.id} in its .json") from None

    def _value(self, values: dict[str, Any]) -> Any:
        name = self.text or "text"
        if name not in values:
            raise SampleError(
                f"no text: no member .{self.text or 'txt'}, and no {name} in a .json; set data.text_column"
            )
        return values[name]

    def name(self, index: int) -> str:
        return self.ids[index]


def _read(path: str, place: Place) -> bytes:
    if place.size > MOST_BYTES:
        raise SampleError(f"a member of {place.size} bytes")
    try:
        with open(path, "rb") as file:
            file.seek(place.offset)
            content = file.read(place.size)
    except OSError as error:
        raise SampleError(f"cannot be read: {error}") from error
    if len(content) < place.size:
        raise SampleError("the shard has become shorter since it was indexed")
    return content


def _record(path: str, place: Place) -> dict[str, Any]:
    if place.size < 0:
        return {}
    try:
        values = json.loads(_read(path, place))
    except (ValueError, RecursionError) as error:
        raise SampleError(f"its .json is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise SampleError("its .json holds no object")
    return values


def _samples(index: "Index") -> Iterator[tuple[str, dict[str, Place]]]:
    """Neighbouring members with one key: the path up to the first dot of the file's name."""
    last: str | None = None
    members: dict[str, Place] = {}
    for name, offset, size in zip(index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True):
        folder, _, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot:  # hidden files, and files that belong to no sample
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != last:
            if last is not None:
                yield last, members
            last, members = key, {}
        members[extension.lower()] = Place(offset, size)
    if last is not None:
        yield last, members


# The index of one shard ----------------------------------------------------------------------------------------------


class Index(NamedTuple):
    """A shard's members."""

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray


def index_folder(config: DataConfig) -> Path:
    """Where indexes are kept."""
    if config.index_folder:
        return Path(config.index_folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ved" / "shards"


def indexed(path: Path, folder: Path) -> Index:
    """The shard's index: the kept one where the shard is as it was, else a new one, kept where that is possible."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    kept = folder / f"{digest(_VERSION, os.path.abspath(path), f'{stat.st_size} {stat.st_mtime_ns}')}.npz"
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            names = arrays["names"].tobytes().decode().split("\0")[:-1]
            index = Index(names, arrays["offsets"], arrays["sizes"])
        if len(index.names) == len(index.offsets) == len(index.sizes):
            return index
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none, or a damaged one: make it again
    index = scan(path)
    with contextlib.suppress(OSError):  # of a folder that cannot be written: the next job scans again
        _keep(index, kept)
    return index


def _keep(index: Index, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = np.frombuffer("".join(f"{name}\0" for name in index.names).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, names=names, offsets=index.offsets, sizes=index.sizes)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(content.getbuffer())
    os.replace(file.name, path)


def scan(path: Path) -> Index:
    """Read every header of a shard. Raises DataError for what is not a whole, uncompressed tar file."""
    names, places = [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    names.append(member.name.encode("utf-8", "replace").decode().replace("\0", "?"))
                    places.append((member.offset_data, member.size))
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes a damaged header for the end
                raise _damaged(path, f"has no end mark behind {names[-1] if names else 'its beginning'}")
    except tarfile.TarError as error:
        raise _damaged(path, f"{error}, behind {names[-1] if names else 'its beginning'}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return Index(names, offsets, sizes)


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: is not a whole, uncompressed tar file ({problem}): decompress it, or make or copy it again; "
        "samples behind the damage could not be reached"
    )
