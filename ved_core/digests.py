"""Digests of a checkpoint folder's files, by which loading tells whether they are what was saved: `ved_digests.json`.

They find damage, a disk's or a copy's, and no malice: who can change a file can change its digest too. XXH3 runs at the
speed of memory, so that a gigabyte takes a tenth of a second.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from ved_core import json_text
from ved_core.errors import CheckpointError

FILE = "ved_digests.json"
ALGORITHM = "xxh3-128"
VARIABLE = "VED_CHECK_DIGESTS"
"""Environment variable that turns checking off where it is 0."""
PIECE = 2**20
ADVICE = (
    f"copy or download it again. If it was changed on purpose, delete {FILE}, which is out of date then; "
    "check_digests=False (--no-check-digests) loads it as it is"
)


@dataclasses.dataclass(frozen=True)
class Digests:
    """What a folder's files were when they were saved. `files`: path in the folder -> digest of its bytes; `tensors`:
    file (or Orbax's folder) -> tensor's stored name -> digest of its numbers in C order."""

    files: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, str]]

    def to_json(self) -> str:
        """The text of the file, with a digest of itself."""
        tensors = {file: dict(digests) for file, digests in self.tensors.items()}
        about = {"algorithm": ALGORITHM, "files": dict(self.files), "tensors": tensors}
        return json.dumps({"about": about, "digest": of_values(about)}, indent=1, sort_keys=True) + "\n"


def of_bytes(data: bytes | memoryview) -> str:
    """The digest of bytes: 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def of_file(path: Path) -> str:
    """The digest of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def of_values(value: Any) -> str:
    """The digest of JSON-ready values."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def wanted(check_digests: bool | None) -> bool:
    """Whether to check: what was asked for, else what the environment says, else yes."""
    return os.environ.get(VARIABLE, "1") != "0" if check_digests is None else check_digests


def read(folder: Path) -> Digests | None:
    """A folder's digests, None where it has none. Raises CheckpointError where they are damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        values = json_text.read(path)
        about = values["about"]
        if values.keys() != {"about", "digest"} or values["digest"] != of_values(about):
            raise ValueError("it is not what was written")
        if about["algorithm"] != ALGORITHM:
            raise ValueError(f"its algorithm is {about['algorithm']!r}, and {ALGORITHM} is the one known")
        files, tensors = about["files"], about["tensors"]
        if any(".." in name.split("/") or name.startswith("/") or "\0" in name for name in files):
            raise ValueError("it names files outside its folder")
        if not _are_digests(files) or not isinstance(tensors, dict) or not all(map(_are_digests, tensors.values())):
            raise ValueError("it has other things than digests")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{error}".split())
        raise CheckpointError(
            f"{path}: damaged, or of another release ({reason}); delete it to load the folder without digests"
        ) from None
    return Digests(files, tensors)


def _are_digests(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def damaged(folder: Path, digests: Digests | None, names: Iterable[str]) -> list[str]:
    """Those of a folder's files, by their paths in it, that are there and not what was saved. Raises OSError where one
    cannot be read."""
    if digests is None:
        return []
    promised = ((name, digests.files[name]) for name in names if name in digests.files and (folder / name).is_file())
    return [name for name, digest in promised if of_file(folder / name) != digest]


def refresh(folder: Path, names: Iterable[str]) -> None:
    """Take files that were written anew by themselves into a folder's digests, where it has some. Raises OSError."""
    try:
        before = read(folder)
    except CheckpointError:  # what loading says, in any case
        return
    if before is None:
        return
    new = {name: of_file(folder / name) for name in names if (folder / name).is_file()}
    if new.items() <= before.files.items():
        return
    part = folder / f"{FILE}.{os.getpid()}"
    try:
        part.write_text(Digests({**before.files, **new}, before.tensors).to_json(), encoding="utf-8")
        os.replace(part, folder / FILE)
    finally:
        part.unlink(missing_ok=True)
