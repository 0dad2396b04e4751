"""Samples listed in a CSV, TSV or JSONL file beside a folder of images."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ved_core.configs.base import shorten
from ved_core.errors import DataError, SampleError
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.samples import Sample, Strings, digest, texts_of

SUFFIXES = (".csv", ".tsv", ".jsonl")
IMAGE_COLUMNS = ("image", "file_name")

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | str]]
"""The line that a row begins on, and the row, or why there is none."""


class ManifestSource:
    """A manifest, read once. In TSV a quote is a character like others; in CSV it encloses cells.

    A row that is damaged is a bad sample, named by its line. Raises DataError for a file that is no manifest, lacks a
    column, or has a path that leaves the image folder.
    """

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.folder = Path(config.image_folder) if config.image_folder else path.parent
        if not self.folder.is_dir():
            raise DataError(f"{path}: its image folder {str(self.folder)!r} does not exist; set data.image_folder")
        self.images, self.texts, self.ids = Strings(()), Strings(()), Strings(())
        self.problems: dict[int, str] = {}
        columns = _Columns(path, config)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for line, row in _jsonl(file) if path.suffix == ".jsonl" else _separated(file, path, columns):
                    self._append(line, row, columns)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        if not len(self):
            raise DataError(f"{path}: holds no rows")
        if len(self.problems) > config.max_bad_share * len(self):
            first = next(iter(self.problems.values()))
            raise DataError(
                f"{path}: {len(self.problems)} of {len(self)} rows are bad, more than data.max_bad_share = "
                f"{config.max_bad_share:g}; the first: {first}"
            )
        self.fingerprint = digest(*(strings.buffer for strings in (self.ids, self.images, self.texts)))

    def _append(self, line: int, row: Row | str, columns: "_Columns") -> None:
        image, name = "", f"line {line}"
        texts: tuple[str, ...] = ()
        try:
            if isinstance(row, str):
                raise SampleError(row)
            image, texts, given = columns.cells(row)
            name = given or image
            if not _inside(image, self.folder):
                raise DataError(
                    f"{self.path}, line {line}: {shorten(image)} leaves the image folder {str(self.folder)!r}; "
                    "set data.image_folder to a folder that holds all images"
                )
        except SampleError as error:
            self.problems[len(self)] = f"{self.path}, line {line}: {error}"
        self.images.append(image)
        self.texts.append(json.dumps(texts, ensure_ascii=False))
        self.ids.append(name)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if index in self.problems:
            raise SampleError(self.problems[index])
        image = self.folder / self.images[index]
        return Sample(self.ids[index], image, tuple(json.loads(self.texts[index])))

    def name(self, index: int) -> str:
        return self.ids[index]


class _Columns:
    """Which cells of a row are the image, the text and the id."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.images = (config.image_column,) if config.image_column else IMAGE_COLUMNS
        self.text = config.text_column or "text"
        self.id = config.id_column

    def check(self, header: list[str]) -> None:
        """Raise DataError where a column is missing, or ambiguous."""
        wanted = [(" or ".join(self.images), self.images), (self.text, (self.text,))]
        wanted += [(self.id, (self.id,))] if self.id else []
        for name, any_of in wanted:
            if not set(any_of) & set(header):
                raise DataError(
                    f"{self.path}: its first line, {shorten(header)}, has no column {name}; write one, or set "
                    "data.image_column, data.text_column or data.id_column to the names that it has"
                )
        if len(set(header)) < len(header):
            raise DataError(f"{self.path}: its first line, {shorten(header)}, has one column twice")

    def cells(self, row: Row) -> tuple[str, tuple[str, ...], str]:
        """Image path, texts, and id or nothing. Raises SampleError."""
        image = next((row[name] for name in self.images if name in row), None)
        if not isinstance(image, str) or not image:
            raise SampleError(f"no path of an image in {' or '.join(self.images)}")
        if "\0" in image:
            raise SampleError(f"its path {shorten(image)} holds a zero byte")
        if self.text not in row:
            raise SampleError(f"no {self.text}")
        texts_of(image)
        given = "" if self.id is None else str(row.get(self.id, ""))
        return image, texts_of(row[self.text]), given


def _separated(file: TextIO, path: Path, columns: _Columns) -> Rows:
    tabs = path.suffix == ".tsv"
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line}: {error}; enclose cells in quotes, and double quotes inside"
            ) from None
        if not cells:
            continue
        if header is None:
            header = cells
            columns.check(header)
        elif len(cells) != len(header):
            yield line, f"{len(cells)} cells, where the first line has {len(header)}"
        else:
            yield line, dict(zip(header, cells, strict=True))


def _jsonl(file: TextIO) -> Rows:
    for line, content in enumerate(file, start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON ({error})"
            continue
        yield line, row if isinstance(row, dict) else f"holds {shorten(row)}, not a JSON object"


def _inside(image: str, folder: Path) -> bool:
    """Whether the path stays in the folder, as it is written: symbolic links there are the owner's own."""
    whole = os.path.abspath(folder / image)
    return whole.startswith(os.path.join(os.path.abspath(folder), ""))
