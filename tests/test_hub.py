"""Names and paths -> folders. The hub is a loopback one, asked from a subprocess: its address is read at import."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import Hub, Refusal, commit_of, serve
from ved_core import hub as ved_hub
from ved_core.errors import HubError

ROOT = Path(__file__).parents[1]
REPO = "owner/reader"
UNWANTED = {"README.md", "pytorch_model.bin", "optimizer.safetensors", "onnx/config.json", "fp16/model.safetensors"}
WANTED = {"config.json", "merges.txt", "spiece.model", "model.safetensors", "model-00001-of-00002.safetensors"}
SCRIPT = """
import sys
from ved_core.errors import HubError
from ved_core.hub import resolve
name, revision, subfolder = sys.argv[1:]
try:
    print("folder", resolve(name, revision=revision or None, subfolder=subfolder or None))
except HubError as error:
    print("error", error)
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    for name in WANTED | UNWANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture
def hub(repo: Path, tmp_path: Path) -> Iterator[Hub]:
    other = tmp_path / "v2"
    other.mkdir()
    (other / "config.json").write_text("second")
    refusals = {
        "owner/gated": Refusal(403, "GatedRepo"),
        "owner/forbidden": Refusal(403),
        "owner/private": Refusal(401, "RepoNotFound", token="hf_letmein"),
        "owner/broken": Refusal(500),
    }
    repos = {REPO: repo, f"{REPO}@v2": other, "owner/private": other, "owner/empty": repo / "onnx"}
    with serve(repos, refusals) as server:
        yield server


def ask(tmp_path: Path, name: str, revision: str = "", subfolder: str = "", **environment: str) -> tuple[str, str]:
    """Resolve in a process of its own, with a cache of its own; return "folder" or "error", and which."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE", "TQDM"))}
    env = {**kept, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache"), **environment}
    command = [sys.executable, "-c", SCRIPT, name, revision, subfolder]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    kind, _, answer = done.stdout.strip().partition(" ")
    assert "\n" not in answer
    return kind, answer


def listing(folder: str | Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_name_is_downloaded_once_and_then_found_offline(hub: Hub, repo: Path, tmp_path: Path) -> None:
    kind, folder = ask(tmp_path, REPO, HF_ENDPOINT=hub.endpoint)
    assert kind == "folder"
    assert listing(folder) == WANTED
    assert hub.files() == {f"{REPO}/{name}" for name in WANTED}
    assert (Path(folder) / "config.json").read_text() == "content of config.json"

    hub.requests.clear()
    assert ask(tmp_path, REPO, HF_ENDPOINT=hub.endpoint) == ("folder", folder)
    assert not hub.files()

    gone = f"http://127.0.0.1:{free_port()}"
    assert ask(tmp_path, REPO, HF_ENDPOINT=gone) == ("folder", folder)
    hub.requests.clear()
    assert ask(tmp_path, REPO, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1") == ("folder", folder)
    assert not hub.requests


def test_a_subfolder_is_fetched_alone(hub: Hub, tmp_path: Path) -> None:
    kind, folder = ask(tmp_path, REPO, subfolder="fp16", HF_ENDPOINT=hub.endpoint)
    assert (kind, Path(folder).name, listing(folder)) == ("folder", "fp16", {"model.safetensors"})
    assert hub.files() == {f"{REPO}/fp16/model.safetensors"}


@pytest.mark.parametrize("by_commit", [False, True])
def test_a_revision(hub: Hub, tmp_path: Path, by_commit: bool) -> None:
    revision = commit_of(tmp_path / "v2") if by_commit else "v2"
    kind, folder = ask(tmp_path, REPO, revision=revision, HF_ENDPOINT=hub.endpoint)
    assert (kind, listing(folder)) == ("folder", {"config.json"})
    assert (Path(folder) / "config.json").read_text() == "second"


def test_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    assert ask(tmp_path, "owner/private", HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_letmein")[0] == "folder"


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("owner/nowhere", {}, ["not on the hub", "private"]),
        ("owner/private", {}, ["not on the hub", "HF_TOKEN"]),
        ("owner/private", {"HF_TOKEN": "hf_wrong"}, ["HF_TOKEN"]),
        ("owner/gated", {}, ["gated", "accept its terms"]),
        ("owner/forbidden", {}, ["403", "token"]),
        ("owner/broken", {}, ["500", "later"]),
        ("owner/empty", {"subfolder": "absent"}, ["no file like *.json", "absent"]),
        (REPO, {"revision": "v3"}, ["no revision 'v3'"]),
        (REPO, {"HF_HUB_OFFLINE": "1"}, ["not in the cache", "HF_HUB_OFFLINE"]),
        ("owner/na--me", {}, ["neither a folder nor a name"]),
        ("two words", {}, ["neither a folder nor a name"]),
    ],
)
def test_what_the_hub_refuses(hub: Hub, tmp_path: Path, name: str, options: dict[str, str], parts: list[str]) -> None:
    kind, message = ask(tmp_path, name, **{"HF_ENDPOINT": hub.endpoint, **options})
    assert kind == "error"
    assert all(part in message for part in [repr(name), *parts]), message


def test_no_hub_and_no_cache(tmp_path: Path) -> None:
    kind, message = ask(tmp_path, REPO, HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert kind == "error"
    assert "could not be fetched" in message
    assert "HF_ENDPOINT" in message


def test_a_hub_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        kind, message = ask(tmp_path, REPO, HF_ENDPOINT=endpoint, HF_HUB_ETAG_TIMEOUT="1")
    assert kind == "error"
    assert "Timeout" in message


def test_part_of_a_snapshot_is_not_taken_for_all_of_it(hub: Hub, tmp_path: Path) -> None:
    assert ask(tmp_path, REPO, subfolder="fp16", HF_ENDPOINT=hub.endpoint)[0] == "folder"
    kind, message = ask(tmp_path, REPO, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert kind == "error"
    assert "not in the cache" in message


def test_a_page_in_place_of_a_file_is_not_kept(repo: Path, tmp_path: Path) -> None:
    def send(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        if "/model.safetensors" in handler.path:
            body = b"<!doctype html><title>Please log in</title>"
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    # A page in place of what is asked about a file, too: with its tag and a size that fits.
    with serve({REPO: repo}, send=send) as server:
        kind, said = ask(tmp_path, REPO, HF_ENDPOINT=server.endpoint)
        assert kind == "error"
        assert "model.safetensors" in said
    with serve({REPO: repo}) as server:
        kind, folder = ask(tmp_path, REPO, HF_ENDPOINT=server.endpoint)
    assert kind == "folder"
    assert (Path(folder) / "model.safetensors").read_text() == "content of model.safetensors"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test below may ask any hub."""

    def snapshot(*_: object) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(ved_hub, "_snapshot", snapshot)


@pytest.mark.usefixtures("unreachable")
class TestLocalPaths:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_folder_is_itself(self, repo: Path, kind: type) -> None:
        assert ved_hub.resolve(kind(repo)) == repo

    @pytest.mark.parametrize("subfolder", ["onnx", "onnx/", "./onnx", "onnx/."])
    def test_a_subfolder(self, repo: Path, subfolder: str) -> None:
        assert ved_hub.resolve(repo, subfolder=subfolder) == repo / "onnx"

    @pytest.mark.parametrize("subfolder", ["", ".", None])
    def test_no_subfolder(self, repo: Path, subfolder: str | None) -> None:
        assert ved_hub.resolve(repo, subfolder=subfolder) == repo

    def test_home(self, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(repo.parent))
        monkeypatch.setenv("USERPROFILE", str(repo.parent))
        assert ved_hub.resolve(f"~/{repo.name}") == repo

    def test_a_folder_is_preferred_to_a_name(self, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(repo.parent)
        assert ved_hub.resolve("repo/onnx") == Path("repo/onnx")

    @pytest.mark.parametrize("subfolder", ["..", "a/../..", "/etc", "\\etc", "..\\up", "C:\\x", "onnx/../onnx"])
    def test_a_subfolder_that_leaves(self, repo: Path, subfolder: str) -> None:
        with pytest.raises(HubError, match="leaves the checkpoint"):
            ved_hub.resolve(repo, subfolder=subfolder)

    def test_an_absent_subfolder(self, repo: Path) -> None:
        with pytest.raises(HubError, match=r"no such folder.*absent"):
            ved_hub.resolve(repo, subfolder="absent")

    def test_a_folder_has_no_revision(self, repo: Path) -> None:
        with pytest.raises(HubError, match="no revision 'v2'"):
            ved_hub.resolve(repo, revision="v2")

    def test_a_file(self, repo: Path) -> None:
        with pytest.raises(HubError, match=r"is a file; give its folder, '.*repo'"):
            ved_hub.resolve(repo / "config.json")

    @pytest.mark.parametrize(
        "name",
        ["./x", "../x", "/no/x", "~/no-such-x", "a\\b", "a/b/c", "x.safetensors", "a/model.bin", "m.h5", Path("a/b")],
    )
    def test_a_path_that_is_not_there(self, name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(HubError, match="no such folder"):
            ved_hub.resolve(name)

    def test_no_name(self) -> None:
        with pytest.raises(HubError, match="empty"):
            ved_hub.resolve("")

    @pytest.mark.parametrize("as_folder", [True, False])
    @pytest.mark.parametrize("exists", [True, False])
    def test_tensorflow_1(self, tmp_path: Path, as_folder: bool, exists: bool) -> None:
        if exists or as_folder:
            for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "config.json"):
                (tmp_path / name).touch()
        with pytest.raises(HubError, match=r"TensorFlow 1 .*from_tf=True"):
            ved_hub.resolve(tmp_path if as_folder else tmp_path / "model.ckpt.index")

    def test_tensorflow_1_beside_readable_weights(self, tmp_path: Path) -> None:
        (tmp_path / "model.ckpt.index").touch()
        (tmp_path / "model.safetensors").touch()
        assert ved_hub.resolve(tmp_path) == tmp_path


def test_import_is_cheap() -> None:
    code = "import sys, ved_core.hub; print(sorted({'huggingface_hub', 'transformers', 'torch'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
