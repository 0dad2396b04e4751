"""A disk that is full, or a limit on a file's size, at some byte of a save: one clear error, the checkpoint before is
there byte for byte, and nothing else is. Then there is room, and the save goes through."""

import contextlib
import importlib.util
import io
import os
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conversion import folder as folders
from conversion.convert import convert
from tests.torture import Attack, Outcome
from tests.torture._saver import MODELS, found_in, make_versions
from ved_core.errors import VedError

FORMATS = ("safetensors", "torch", "flax", "tf", "orbax")
LARGEST = 1_900_000
"""Bytes of the weights, not quite."""
DISK = 16 * 2**20


def content(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: files' bytes, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@contextlib.contextmanager
def file_limit(folder: Path, room: int) -> Iterator[None]:
    """No file of this process may be larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_disk(folder: Path, room: int) -> Iterator[None]:
    """No more than so many bytes are left on the disk of a folder."""
    ballast = folder.parent / "ballast"
    status = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - room))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system in memory, where this user may make one."""
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", place]
        try:
            made = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            made = False
        if not made:
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def run(seed: int, count: int) -> Iterator[Outcome]:
    """At so many offsets, over all formats and ways to save."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place, small_disk() as disk:
        versions = make_versions(Path(place))
        saves: list[tuple[str, Callable[[Path, str], Any]]] = [("convert", lambda x, to: convert(versions[1], x, to))]
        for name, cls in MODELS.items():
            if importlib.util.find_spec(name):
                model = getattr(__import__(f"ved_{name}"), cls).from_pretrained(versions[1])
                saves.append((f"{name}, save_pretrained", lambda x, to, m=model: m.save_pretrained(x, format=to)))
        for number in range(count):
            kind, save = saves[number % len(saves)]
            to = FORMATS[number % len(FORMATS)]
            limited = file_limit if disk is None or number % 2 else full_disk
            where = Path(place) if limited is file_limit else disk
            assert where is not None
            room = rng.randrange(LARGEST)
            title = (
                f"{kind} to {to}, {limited.__name__} behind {room} bytes, {('exchanged', 'in place')[number // 2 % 2]}"
            )
            exchanged = folders._exchanged
            if number // 2 % 2:
                folders._exchanged = lambda *_: False
            try:
                yield tried(title, save, to, limited, where / f"disk{number}", room, versions)
            except Exception as error:
                yield Outcome(title, "failed", f"{type(error).__name__}: {error}")
            finally:
                folders._exchanged = exchanged
                shutil.rmtree(where / f"disk{number}")


def tried(
    title: str, save: Callable[[Path, str], Any], to: str, limited: Any, place: Path, room: int, versions: Any
) -> Outcome:
    """One save that does not fit, unless it does; the folder has another version before."""
    target = place / "x"
    convert(versions[0], target)
    before = content(place)
    said = None
    # What a library says on stderr from its threads, hundreds of times, is none of the error.
    with limited(place, room), contextlib.redirect_stderr(io.StringIO()):
        try:
            save(target, to)
        except (VedError, OSError) as error:
            said = str(error)
    if said is None:
        assert found_in(target, versions) == "other", "it went through, and is not there"
        return Outcome(title, "survived", "it fitted")
    after = content(place)
    if after != before:
        others = sorted(after.keys() ^ before.keys())
        return Outcome(
            title, "failed", f"changed: {others or [name for name in before if after[name] != before[name]]}"
        )
    if str(target) not in said or "Traceback" in said or len(said) > 600:
        return Outcome(title, "failed", f"the error is not clear: {said}")
    save(target, to)
    assert found_in(target, versions) == "other", "with room it does not go through"
    return Outcome(title, "refused", said)


ATTACK = Attack("a full disk and a file-size limit during saves", 20, run, short=6)
