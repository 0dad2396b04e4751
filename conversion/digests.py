"""Digests of weights: taken while they are written, and compared when they are loaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from conversion.names import listed
from conversion.tensors import Lazy, Tensor, contiguous
from ved_core import digests
from ved_core.digests import FILE, Digests
from ved_core.errors import CheckpointError


class Recorder:
    """Takes each tensor's digest at the moment that it is made to be written."""

    def __init__(self) -> None:
        self.found: dict[int, str] = {}
        self.names: dict[str, int] = {}

    def wrapped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under the same names; one that stands under several stays one."""
        places = {id(tensor): (i, tensor) for i, tensor in enumerate(tensors.values())}
        wrapped = {key: self._wrapped(i, tensor) for key, (i, tensor) in places.items()}
        self.names |= {name: places[id(tensor)][0] for name, tensor in tensors.items()}
        return {name: wrapped[id(tensor)] for name, tensor in tensors.items()}

    def _wrapped(self, place: int, tensor: Tensor) -> Lazy:
        def make() -> np.ndarray:
            array = np.asarray(np.asarray(tensor), order="C")
            self.found[place] = digests.of_bytes(contiguous(array))
            return array

        return Lazy(tensor.shape, tensor.dtype, make)

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """The digests of tensors that were written."""
        return {name: self.found[self.names[name]] for name in names}


def files(folder: Path) -> dict[str, str]:
    """Path in a folder -> digest, of all files there and below."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return {path.relative_to(folder).as_posix(): digests.of_file(path) for path in inside}


def keep(part: Path, old: Path, kept: Callable[[str], bool]) -> None:
    """Take the digests of those files over, into the new ones in `part`, that stay in the folder `old`."""
    new = digests.read(part)
    try:
        before = digests.read(old)
    except CheckpointError:
        return
    if new is None or before is None:
        return
    staying = {name: each for name, each in before.files.items() if kept(_top(name)) and (old / name).is_file()}
    tensors = {name: each for name, each in before.tensors.items() if kept(_top(name))}
    (part / FILE).write_text(Digests({**staying, **new.files}, {**tensors, **new.tensors}).to_json(), encoding="utf-8")


def _top(name: str) -> str:
    return name.partition("/")[0]


def check(folder: Path, names: Iterable[str], read: Callable[[Path], Mapping[str, Tensor]]) -> None:
    """Compare a folder's files, by their paths in it, with its digests, where it has some; `read` gives a file's (or
    Orbax's folder's) tensors. Raises CheckpointError naming the file that is not what was saved, and its tensors."""
    promised = digests.read(folder)
    if promised is None:
        return
    present = set(names)
    inside = {name for name in promised.files if "/" in name and _top(name) in present}
    try:
        missing = sorted(name for name in inside if not (folder / name).is_file())
        wrong = digests.damaged(folder, promised, sorted(present | inside))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); {digests.ADVICE}") from None
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: is missing; {digests.ADVICE}")
    if wrong:
        what = _explained(folder, _top(wrong[0]), promised, read)
        raise CheckpointError(f"{folder / wrong[0]}: {what}; {digests.ADVICE}")


def _explained(folder: Path, name: str, promised: Digests, read: Callable[[Path], Mapping[str, Tensor]]) -> str:
    """What of a file is not as it was saved."""
    expected = promised.tensors.get(name)
    if expected is None:
        return "is not what was saved"
    try:
        found = read(folder / name)
    except CheckpointError as error:
        return f"is not what was saved, and cannot be read ({str(error).partition(': ')[2].partition(';')[0]})"
    if found.keys() != expected.keys():
        return f"has not the tensors that were saved: it differs in {listed(sorted(found.keys() ^ expected.keys()))}"
    wrong = [name for name, tensor in found.items() if _digest(tensor) != expected[name]]
    if len(wrong) == len(found) > 1:
        return "holds other numbers than were saved, in every tensor"
    if wrong:
        return f"is damaged: {listed(wrong)} {'is' if len(wrong) == 1 else 'are'} not what was saved"
    return "is damaged, though not in its tensors' numbers"


def _digest(tensor: Tensor) -> str | None:
    """A tensor's digest; None where it cannot be read."""
    try:
        return digests.of_bytes(contiguous(tensor))
    except CheckpointError:
        return None
