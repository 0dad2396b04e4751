"""Samples in ArrayRecord files, and a writer for them.

A record is a msgpack map, as `write_array_record` makes it, or a serialised tf.train.Example, as TensorFlow Datasets
does; the latter is read without TensorFlow.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ved_core.configs.base import shorten
from ved_core.errors import DataError, SampleError
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.samples import Sample, digest, texts_of

IMAGES = ("image", "file_name", "jpg", "png", "image/encoded")
_EXAMPLE = 0x0A
"""How a tf.train.Example begins: field 1, with a length. No msgpack map begins so."""
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class ArrayRecordSource:
    """Records with random access. Raises DataError for a file that cannot be opened."""

    def __init__(self, paths: Sequence[Path], config: DataConfig) -> None:
        self.paths = [str(path) for path in paths]
        self.images = (config.image_column,) if config.image_column else IMAGES
        self.text, self.id = config.text_column or "text", config.id_column
        for path in self.paths:
            if not os.path.isfile(path) or not os.path.getsize(path):
                raise DataError(f"{path}: no such file, or an empty one")
        try:
            self.length = len(self._records)
        except Exception as error:  # the library has one error for everything
            raise DataError(
                f"{self.paths[0]} (or one of {len(paths)}): not a whole ArrayRecord file ({error or 'damaged'}); "
                "make or copy it again"
            ) from error
        if not self.length:
            raise DataError(f"{self.paths[0]}: {len(paths)} file(s) without a record")
        sizes = [f"{os.path.basename(path)} {os.path.getsize(path)}" for path in self.paths]
        self.fingerprint = digest(*sizes, str(self.length))

    @cached_property
    def _records(self) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}  # open files

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        try:
            record = self._records[index]
        except Exception as error:  # as above
            raise SampleError(f"{self.name(index)}: cannot be read ({error or 'damaged'})") from error
        try:
            values = fields(record)
            image = next((values[name] for name in self.images if name in values), None)
            if not isinstance(image, bytes):
                raise SampleError(f"has no bytes in {' or '.join(self.images)}, but {shorten(list(values))}")
            if self.text not in values:
                raise SampleError(f"has no {self.text}, but {shorten(list(values))}; set data.text_column")
            name = self.name(index) if self.id is None else _text(values.get(self.id, ""))
            return Sample(name, image, texts_of(_texts(values[self.text])))
        except SampleError as error:
            raise SampleError(f"{self.name(index)}: {error}") from None

    def name(self, index: int) -> str:
        return f"record {index}"


def write_array_record(samples: Iterable[tuple[str, bytes, str | Sequence[str]]], path: str | Path) -> int:
    """Write samples, each an id, an image file's content, and a text or several, and return how many there were; read
    them with data.id_column=id. The file appears when it is whole."""
    import msgpack
    from array_record.python.array_record_module import ArrayRecordWriter

    path, count = Path(path), 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        writer = ArrayRecordWriter(f"{folder}/records", "group_size:1")
        for name, image, text in samples:
            texts = text if isinstance(text, str) else list(text)
            writer.write(msgpack.packb({"id": name, "image": image, "text": texts}))
            count += 1
        writer.close()
        os.replace(f"{folder}/records", path)
    return count


def fields(record: bytes) -> dict[str, Any]:
    """A record's values by name. Raises SampleError."""
    import msgpack

    try:
        values = _example(record) if record[:1] == bytes([_EXAMPLE]) else msgpack.unpackb(record)
    except Exception as error:  # msgpack's, and ours for a damaged example
        raise SampleError(f"neither a msgpack map nor a tf.train.Example ({error or type(error).__name__})") from None
    if not isinstance(values, dict):
        raise SampleError(f"a msgpack {type(values).__name__}, not a map")
    return values


def _texts(value: Any) -> Any:
    return [_text(item) for item in value] if isinstance(value, list) else _text(value)


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise SampleError(f"its text is not UTF-8 ({error.reason})") from None


# tf.train.Example: a map of names to lists of bytes; lists of numbers are no image and no text ------------------------


def _example(record: bytes) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for features in _messages(record, 1):
        for entry in _messages(features, 1):
            name = b"".join(_messages(entry, 1)).decode()
            for feature in _messages(entry, 2):
                items = [item for held in _messages(feature, 1) for item in _messages(held, 1)]
                values[name] = items[0] if len(items) == 1 else items
    return values


def _messages(content: bytes, wanted: int) -> Iterator[bytes]:
    """The fields with this number that have a length. Raises ValueError where the content is damaged."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == _DELIMITED:
            size, at = _varint(content, at)
            if at + size > len(content):
                raise ValueError("ends too early")
            if key >> 3 == wanted:
                yield content[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(content, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("ends too early")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without end")
