"""The file of `ved read --output`: JSON lines, each appended whole, which tell a later run what has been read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from ved_core.errors import VedError

try:
    import fcntl
except ImportError:  # Windows: two commands that write to one file are not told apart
    fcntl = None  # type: ignore[assignment]

LONGEST_LINE = 16 * 2**20
"""Bytes; whatever is longer is no reading."""


class Readings:
    """An open file of readings. A context manager: a new file into which nothing came goes again."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Open a new file or, with `resume`, go on behind the last whole line of one that is there.

        Raises VedError where it has other content, another process writes to it, or it is there without `resume`;
        OSError where the system refuses.
        """
        self.path = path
        self.names: set[str] = set()
        """The images that are in the file."""
        self.failed = 0
        """How many of them could not be read."""
        self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._begin(resume)
        except BaseException:
            os.close(self.file)
            raise

    def _begin(self, resume: bool) -> None:
        if fcntl:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise VedError(
                    f"{self.path}: another command writes to it; wait for it, or give another name"
                ) from None
        self.end = os.fstat(self.file).st_size
        if self.end and not resume:
            raise VedError(f"{self.path}: is there already; --resume goes on with it, or give another name")
        if self.end:
            with open(self.path, "rb") as file:
                self.end = self._known(file)
            os.truncate(self.file, self.end)  # what was half written when a run was ended

    def _known(self, file: BinaryIO) -> int:
        """Take down what is in the file; where its last whole line ends."""
        end = 0
        for number, line in enumerate(lines(file), 1):
            if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                break
            try:
                entry = json.loads(line)
                self.names.add(os.fspath(entry["image"]))
                self.failed += "error" in entry
            except (ValueError, KeyError, TypeError, RecursionError):
                raise VedError(
                    f"{self.path}: line {number} is no reading ({line[:40]!r}); give the file of an earlier --output, "
                    "or another name"
                ) from None
            end += len(line)
        return end

    def add(self, entry: dict[str, Any]) -> None:
        """Append an image's entry. Raises OSError where it does not fit, and leaves no part of it."""
        data = encoded(entry)
        try:
            written = os.write(self.file, data)
            while written < len(data):
                written += os.write(self.file, data[written:])
        except OSError as error:
            os.truncate(self.file, self.end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.end += len(data)
        self.names.add(entry["image"])
        self.failed += "error" in entry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.end == 0:
            self.path.unlink(missing_ok=True)
        elif error is None:
            os.fsync(self.file)
        os.close(self.file)


def lines(file: BinaryIO) -> Iterator[bytes]:
    """A file's lines, the longest ones cut."""
    while line := file.readline(LONGEST_LINE):
        yield line


def encoded(entry: dict[str, Any]) -> bytes:
    """A line; a name that is no UTF-8 stands in it with JSON's escapes."""
    try:
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(entry).encode() + b"\n"
