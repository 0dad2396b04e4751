"""A checkpoint folder is written whole or not at all.

New files are written into a temporary sibling, with links to those of the old folder that stay, and the two folders
are exchanged in one step (renameat2). Where that is impossible (other systems, a mount point, a parent that cannot be
written, the working directory), the new files are written into a folder `.ved-new-*` inside, which is renamed to
`.ved-commit` once it is whole, and then moved up file by file; `repair`, which loading and saving begin with, goes on
with that where it was interrupted. Until the rename the old files are untouched; after it the new ones are complete.
"""

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ved_core import json_text
from ved_core.errors import CheckpointError, VedError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and what an interrupted save left is not cleared away
    fcntl = None  # type: ignore[assignment]

COMMIT = ".ved-commit"
NEW = ".ved-new-"
PART = ".ved-part"
REMOVED = ".ved-removed.json"
TEMPORARY = re.compile(re.escape(NEW) + "|" + re.escape(PART) + r"\b")
AT_FDCWD, RENAME_EXCHANGE = -100, 2
IMPOSSIBLE = {errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES, errno.EROFS}

ATTEMPTS = 20
"""How often a folder is read that others save at the same time, before what is found is taken as it is."""

CLEARINGS = 20
"""How often, twenty times a second, a temporary folder is removed that is filled again."""

T = TypeVar("T")
Stale = Callable[[str], bool]
"""Whether a file or folder of this name in the old folder goes, though no new one replaces it."""


Seal = Callable[[Path, Path, Stale], None]
"""Called with the new files' folder, the old folder, and which names in that stay, before the new takes its place."""


def write_folder(folder: Path, fill: Callable[[Path], None], stale: Stale, seal: Seal = lambda *_: None) -> None:
    """Let `fill` write files into an empty folder, and make them `folder`'s; others there stay, but for `stale` ones.

    `seal` has the last word, while nobody else writes. The folder keeps its permissions, or gets the umask's. Raises
    OSError where the disk refuses, and whatever `fill` raises; the folder is then as it was.
    """
    folder = folder.resolve()
    with _naming(folder), _parents(folder):
        repair(folder)
        _write_folder(folder, fill, stale, seal)


def _write_folder(folder: Path, fill: Callable[[Path], None], stale: Stale, seal: Seal) -> None:
    if folder.is_dir() and not _movable(folder):
        _write_inside(folder, fill, stale, seal)
        return
    with _temporary(folder.parent, f".{folder.name}.", PART) as part:
        fill(part)
        new = {entry.name for entry in part.iterdir()}

        def kept(name: str) -> bool:
            return name not in new and not stale(name) and not name.startswith(NEW)

        with _locked(folder.parent):
            if folder.is_dir():
                seal(part, folder, kept)
                _link(folder, part, kept)
                shutil.copymode(folder, part)
            _flush_tree(part)
            if not folder.is_dir():
                os.rename(part, folder)
            elif _exchanged(part, folder):
                _link(part, folder, kept)  # what others wrote in the meantime
                shutil.rmtree(part, ignore_errors=True)  # the old folder
            _flush(folder.parent)
        if part.is_dir():  # it could not be exchanged
            _write_inside(folder, fill, stale, seal)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Let the system's errors name the folder, where they name nothing or what is temporary."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        if isinstance(error, VedError) or error.errno is None or (name and not TEMPORARY.search(name)):
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above, which go again where nothing comes into them."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def repair(folder: Path) -> None:
    """Finish a save into `folder` that was interrupted after its files were complete. Raises CheckpointError where it
    cannot."""
    if (folder / COMMIT).is_dir():
        with _locked(folder):
            _move_up(folder)


def consistent(folder: Path, read: Callable[[], T]) -> T:
    """What `read` finds in the folder, read again where it was saved anew meanwhile: nothing is of two saves.
    Raises whatever it raises of a folder that stays as it is."""
    for _ in range(ATTEMPTS):
        before = _state(folder)
        try:
            found = read()
        except (VedError, OSError):
            if _state(folder) == before:
                raise
        else:
            if _state(folder) == before:
                return found
    return read()


def _state(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _write_inside(folder: Path, fill: Callable[[Path], None], stale: Stale, seal: Seal) -> None:
    with _temporary(folder, NEW, "") as part:
        fill(part)
        new = {entry.name for entry in part.iterdir()}
        with _locked(folder):
            _move_up(folder)
            seal(part, folder, lambda name: name not in new and not stale(name))
            gone = [entry.name for entry in folder.iterdir() if entry.name not in new and stale(entry.name)]
            (part / REMOVED).write_text(json.dumps(gone), encoding="utf-8")
            _flush_tree(part)
            os.rename(part, folder / COMMIT)
            _flush(folder)
            _move_up(folder)


def _move_up(folder: Path) -> None:
    """Move a complete set of new files to where they belong; the folder is locked."""
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    try:
        if commit.is_symlink():
            raise ValueError("it is a link")
        gone = json_text.read(commit / REMOVED)
        # The folder may be a stranger's: "..", as the name of a file, would be the folder above.
        if not all(isinstance(name, str) and name == os.path.basename(name) and set(name) - {"."} for name in gone):
            raise ValueError("it is to remove what is not in the folder")
        for name in gone:
            _remove(folder / name)
        for entry in sorted(commit.iterdir()):
            if entry.name != REMOVED:
                if entry.is_dir():
                    _remove(folder / entry.name)
                os.replace(entry, folder / entry.name)
        _flush(folder)
        shutil.rmtree(commit)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: a save was interrupted, and {COMMIT} in it has the new files, which cannot be moved up "
            f"({error}); do so by hand, or save again"
        ) from None


@contextmanager
def _temporary(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """A new folder, locked as long as it is in use, and gone afterwards; those of processes that died go too."""
    name = re.compile(re.escape(prefix) + "[0-9a-f]{12}" + re.escape(suffix))
    path = parent / f"{prefix}{secrets.token_hex(6)}{suffix}"
    with ExitStack() as held:
        with _locked(parent):
            for left in parent.iterdir() if fcntl else ():
                if name.fullmatch(left.name):
                    with suppress(OSError), _locked(left, wait=False):
                        shutil.rmtree(left)
            path.mkdir()  # with the umask's permissions, which tempfile's folders have not
            held.enter_context(_locked(path, wait=False))
        try:
            yield path
        finally:
            for _ in range(CLEARINGS):  # after an interruption, threads of a library may still write
                shutil.rmtree(path, ignore_errors=True)
                if not path.exists():
                    break
                time.sleep(0.05)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the folder's lock, which processes and threads share. Raises BlockingIOError where another has it and
    `wait` is false."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _movable(folder: Path) -> bool:
    """Whether another folder may take its place: no mount point, and not where a process of ours stands."""
    here = Path.cwd()
    return (
        not os.path.ismount(folder)
        and here != folder
        and folder not in here.parents
        and os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in IMPOSSIBLE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _link(source: Path, target: Path, kept: Callable[[str], bool]) -> None:
    """Give `target` what `source` has and it has not, as links to the same files, or copies across file systems."""
    for entry in source.iterdir():
        place = target / entry.name
        if not kept(entry.name) or (place.exists() and not place.is_dir()):
            continue
        if entry.is_symlink():
            with suppress(FileExistsError):
                place.symlink_to(os.readlink(entry))
        elif entry.is_dir():
            place.mkdir(exist_ok=True)
            shutil.copymode(entry, place)
            _link(entry, place, lambda _: True)
        elif entry.is_file():
            try:
                os.link(entry, place)
            except FileExistsError:
                continue
            except OSError:
                shutil.copy2(entry, place)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_tree(folder: Path) -> None:
    """Wait until a folder's entries are on disk, those of the folders in it too. Files are their writers' affair."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            _flush(path)
    _flush(folder)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
