"""`Sample`, the protocol of a `Source`, and what sources share."""

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable
from typing import Any, Protocol

from ved_core.configs.base import shorten
from ved_core.errors import SampleError
from ved_core.images import ImageSource

MOST_BYTES = 2**30
"""Of one stored image or text; what claims to be larger is not read."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image that is not decoded yet, and the texts that are right for it, at least one."""

    id: str
    image: ImageSource
    texts: tuple[str, ...]


class Source(Protocol):
    """Random access to samples. It is pickled into decoding workers, so that it holds paths and no open files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Raises SampleError naming the sample and the reason."""
        ...

    def name(self, index: int) -> str:
        """A sample's id, for messages, whether or not the sample can be read."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever a sample comes, goes, or moves to another place."""
        ...


class Strings:
    """A list of strings in one buffer: millions of them take their length and 8 bytes each, in every worker."""

    def __init__(self, items: Iterable[str]) -> None:
        self.buffer = bytearray()
        self.ends = array("q")
        for item in items:
            self.append(item)

    def append(self, item: str) -> None:
        self.buffer += item.encode()
        self.ends.append(len(self.buffer))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        return self.buffer[self.ends[index - 1] if index else 0 : self.ends[index]].decode()


def digest(*parts: Any) -> str:
    """A short digest of buffers and strings."""
    state = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else memoryview(part).cast("B")
        state.update(len(content).to_bytes(8, "little"))
        state.update(content)
    return state.hexdigest()[:16]


def texts_of(value: Any) -> tuple[str, ...]:
    """The texts in a cell: one, or a list of them. Raises SampleError for anything else."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise SampleError(f"its text is {shorten(value)}, neither a text nor a list of at least one")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SampleError(f"its text {shorten(text)} holds half of a surrogate pair") from None
    return tuple(texts)
