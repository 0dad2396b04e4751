"""A checkpoint folder is the old one or the new one, whatever happens on the way."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from conversion import folder as folders
from conversion.folder import COMMIT, consistent, repair, write_folder
from conversion.source import find
from tests.cases import READER, ROOT
from ved_core.errors import CheckpointError

OLD = {"a": "old a", "b": "old b", "stale": "old", "kept": "mine", "deep/er": "mine too"}
NEW = {"a": "new a", "c": "new c"}
AFTER = NEW | {"b": "old b", "kept": "mine", "deep/er": "mine too"}


def put(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def save(folder, new=NEW):
    write_folder(folder, lambda part: put(part, new), lambda name: name == "stale")


@pytest.fixture
def target(tmp_path):
    put(tmp_path / "x", OLD)
    return tmp_path / "x"


@pytest.fixture(params=["exchanged", "in place"])
def way(request, monkeypatch):
    """With the system's exchange of folders, and without."""
    if request.param == "in place":
        monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    return request.param


def test_a_new_folder(tmp_path):
    save(tmp_path / "new" / "x")
    assert files(tmp_path / "new" / "x") == NEW
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]


def test_an_old_folder(target, way):
    save(target)
    assert files(target) == AFTER
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_folders_inside_are_replaced_whole(target, way):
    put(target, {"orbax/1": "old", "orbax/2": "old"})
    save(target, {"orbax/1": "new"})
    assert {name for name in files(target) if name.startswith("orbax")} == {"orbax/1"}


def test_links_stay_links(target, way):
    (target / "link").symlink_to("kept")
    save(target)
    assert os.readlink(target / "link") == "kept"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umasks_permissions(umask, tmp_path):
    before = os.umask(umask)
    try:
        save(tmp_path / "x")
        os.chmod(tmp_path / "x", 0o750)
        save(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x" / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o750


def test_where_a_process_stands_and_what_it_reads_relative_to(target, monkeypatch):
    monkeypatch.chdir(target)
    save(target)
    with open("c") as file:
        assert file.read() == "new c"
    assert files(target) == AFTER


def test_a_symbolic_link_to_the_folder(target):
    (target.parent / "link").symlink_to("x")
    save(target.parent / "link")
    assert files(target) == AFTER
    assert (target.parent / "link").is_symlink()


def test_a_failure_leaves_the_old_folder(target, way):
    def fill(part):
        put(part, {"a": "half"})
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_folder(target, fill, lambda name: True)
    assert files(target) == OLD
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_what_a_librarys_threads_write_after_a_failure_goes_too(tmp_path, monkeypatch):
    removed = folders.shutil.rmtree
    left = iter([True])

    def filled_again(path, **options):
        removed(path, **options)
        if next(left, False):
            put(path, {"late": "x"})

    def fill(part):
        monkeypatch.setattr(folders.shutil, "rmtree", filled_again)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "new" / "x", fill, lambda name: True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [None, "temporary", "/elsewhere"])
def test_a_failure_names_the_folder(named, target, way):
    def fill(part):
        raise OSError(28, "No space left on device", str(part / "a") if named == "temporary" else named)

    with pytest.raises(OSError, match="No space") as caught:
        write_folder(target, fill, lambda name: True)
    assert caught.value.filename == (named if named == "/elsewhere" else str(target))


def test_an_interrupted_move_is_finished_by_the_next_load(target, monkeypatch):
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    replaced = os.replace
    left = iter([True, False])

    def dies(source, place):
        if not next(left):
            raise KeyboardInterrupt
        replaced(source, place)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        save(target)
    monkeypatch.undo()
    assert (target / COMMIT).is_dir()
    with pytest.raises(CheckpointError, match="no weights in any known format"):
        find(target)  # looks for weights, and repairs first
    assert files(target) == AFTER
    repair(target)
    assert files(target) == AFTER


def test_what_dead_processes_left_is_cleared_away(target):
    dead = target.parent / ".x.0123456789ab.ved-part"
    put(dead, {"a": "x"})
    (target.parent / ".x.mine.ved-part").mkdir()
    save(target)
    assert sorted(path.name for path in target.parent.iterdir()) == [".x.mine.ved-part", "x"]


def test_files_that_others_write_meanwhile_stay(target):
    def fill(part):
        put(part, NEW)
        put(target, {"late": "from another process"})

    write_folder(target, fill, lambda name: name == "stale")
    assert files(target) == AFTER | {"late": "from another process"}


@pytest.mark.parametrize("there", [True, False])
def test_two_savers_and_a_reader(there, tmp_path):
    """Each sees a whole folder, with one saver's files."""
    target = tmp_path / "x"
    versions = [{name: f"{i} {name}" for name in ("a", "b", "c")} for i in range(2)]
    if there:
        save(target, versions[0])
    stop = time.monotonic() + 1.5
    problems = []

    def saver(version):
        while time.monotonic() < stop:
            try:
                save(target, version)
            except Exception as error:
                problems.append(repr(error))

    def read():
        return {name: (target / name).read_text() for name in ("a", "b", "c")}

    def reader():
        while time.monotonic() < stop:
            if target.exists() and (found := consistent(target, read)) not in versions:
                problems.append(repr(found))

    threads = [threading.Thread(target=saver, args=(version,)) for version in versions]
    threads.append(threading.Thread(target=reader))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert files(target) in versions
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["exchanged", "in place"])
def test_savers_wait_for_a_slow_reader(kind, target, monkeypatch):
    """One that never gets to the end of its files otherwise."""
    if kind == "in place":
        monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    versions = [{name: f"{i} {name}" for name in ("a", "b", "c")} for i in range(2)]
    save(target, versions[0])
    stop = threading.Event()
    problems = []

    def saver():
        for i in range(10**6):
            if stop.is_set():
                return
            try:
                save(target, versions[i % 2])
            except Exception as error:
                problems.append(repr(error))

    def read():
        found = {}
        for name in ("a", "b", "c"):
            found[name] = (target / name).read_text()
            time.sleep(0.05)
        return found

    thread = threading.Thread(target=saver)
    thread.start()
    try:
        assert all(consistent(target, read) in versions for _ in range(2))
    finally:
        stop.set()
        thread.join()
    assert not problems


def test_what_another_process_is_about_to_move_up_is_no_file_of_ours(target):
    def fill(part):
        put(part, NEW)
        put(target, {f"{COMMIT}/b": "from another process", f"{COMMIT}/{folders.REMOVED}": "[]"})

    write_folder(target, fill, lambda name: name == "stale")
    assert files(target) == AFTER | {"b": "from another process"}


def test_a_reader_that_does_not_let_go_is_an_error_in_time(target, monkeypatch):
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    monkeypatch.setattr(folders, "PATIENCE", 0.05)
    with folders.held(target), pytest.raises(CheckpointError, match="another process has read or saved it"):
        save(target)
    assert files(target) == OLD
    assert [path.name for path in target.parent.iterdir()] == ["x"]


SAVER = """
import sys, time
from pathlib import Path
from conversion import folder as folders
from conversion.convert import convert
if sys.argv[3] == "in place":
    folders._exchanged = lambda *_: False
print("go", flush=True)
for i in range(1000):
    convert(sys.argv[1], sys.argv[2], ("flax", "safetensors")[i % 2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exchanged", "in place"])
def test_killed_at_any_moment(kind, tmp_path):
    """After kill -9 the folder is whole: it loads, and is of one format."""
    from conversion import checkpoint
    from conversion.formats import FORMATS

    expected = checkpoint.read(READER)
    for attempt in range(25):
        command = [sys.executable, "-c", SAVER, str(READER), str(tmp_path / "x"), kind]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (tmp_path / "x").exists():
            continue
        found = checkpoint.read(tmp_path / "x")
        assert all((found[name] == x).all() for name, x in expected.items())
        weights = [path.name for path in (tmp_path / "x").iterdir() if any(f.owns(path.name) for f in FORMATS.values())]
        assert len(weights) == 1
        assert (tmp_path / "x" / "config.json").read_bytes() == (READER / "config.json").read_bytes()
