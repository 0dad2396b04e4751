"""A Hugging Face hub on the loopback interface: the few endpoints that `snapshot_download` and `upload_folder` use,
over local folders."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/(.+)")
_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/(.+)")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/(.+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """What a test sees of the server: where it is, and what it was asked."""

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)  # "GET /owner/name/resolve/..."

    def files(self) -> set[str]:
        """The files that were downloaded, as "owner/name/path"."""
        found = [_FILE.fullmatch(asked.removeprefix("GET ")) for asked in self.requests if asked.startswith("GET ")]
        return {f"{match[1]}/{match[3]}" for match in found if match}


@dataclass(frozen=True)
class Refusal:
    """How the hub turns a repository's visitors away, unless they bring `token`."""

    status: int
    code: str = ""
    token: str | None = None


@dataclass(frozen=True)
class Uploads:
    """Where new repositories are kept, and the token that may write."""

    folder: Path
    token: str


@contextmanager
def serve(
    repos: Mapping[str, Path],
    refusals: Mapping[str, Refusal] | None = None,
    *,
    uploads: Uploads | None = None,
    send: Callable[..., None] | None = None,
) -> Iterator[Hub]:
    """Serve each folder under its name, "owner/name" (its branch main) or "owner/name@branch". `send`: answers in place
    of the server's own way, given the handler, status, body and headers."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub, Handler.repos, Handler.refusals, Handler.uploads = hub, dict(repos), refusals or {}, uploads
    Handler.send = staticmethod(send) if send else None
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if send:
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections that it cuts
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def commit_of(folder: Path) -> str:
    """The 40 hex digits that stand for the folder's present content."""
    listing = [(str(path.relative_to(folder)), _etag(path)) for path in _files(folder)]
    return hashlib.sha1(repr(listing).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    repos: dict[str, Path]
    refusals: Mapping[str, Refusal]
    send: Callable[..., None] | None = None
    uploads: Uploads | None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if match := _TREE.fullmatch(path):
            repo, revision, file = match[1], match[2], None
        elif match := _FILE.fullmatch(path):
            repo, revision, file = match[1], match[2], match[3]
        elif match := _INFO.fullmatch(path):
            repo, revision, file = match[1], match[2] or "main", None
        else:
            return self._refuse(404, "")
        refusal = self.refusals.get(repo)
        if refusal and (refusal.token is None or self.headers["Authorization"] != f"Bearer {refusal.token}"):
            return self._refuse(refusal.status, refusal.code)
        branches = {name: folder for name, folder in self.repos.items() if name.split("@")[0] == repo}
        if not branches:
            return self._refuse(401, "RepoNotFound")  # as the real one answers strangers
        commits = {commit_of(folder): folder for folder in branches.values()}
        folder = branches.get(repo if revision == "main" else f"{repo}@{revision}", commits.get(revision))
        if folder is None:
            return self._refuse(404, "RevisionNotFound")
        if file is not None:
            return self._send_file(folder, file)
        if "/tree/" in path:
            return self._send_json([_tree_entry(folder, path) for path in _files(folder)])
        siblings = [
            {"rfilename": entry.relative_to(folder).as_posix(), "size": entry.stat().st_size}
            for entry in _files(folder)
        ]
        return self._send_json({"id": repo, "modelId": repo, "sha": commit_of(folder), "siblings": siblings})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.uploads is None or self.headers["Authorization"] != f"Bearer {self.uploads.token}":
            return self._refuse(401, "")
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if name in self.repos else 200
            self.repos.setdefault(name, self.uploads.folder / name).mkdir(parents=True, exist_ok=True)
            return self._send_json({"url": f"{self.hub.endpoint}/{name}"}, status)
        if _PREUPLOAD.fullmatch(path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["size"] < 20_000 else "lfs",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send_json({"files": modes})
        if _BATCH.fullmatch(path):
            objects = json.loads(body)["objects"]
            actions = [
                {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}", "header": {}}}}
                for one in objects
            ]
            return self._send_json({"transfer": "basic", "objects": actions})
        if (match := _COMMIT.fullmatch(path)) and match[1] in self.repos:
            folder = self.repos[match[1]]
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "header":
                    continue
                target = folder / value["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                if entry["key"] == "file":
                    target.write_bytes(base64.b64decode(value["content"]))
                else:
                    target.write_bytes((self.uploads.folder / "lfs" / value["oid"]).read_bytes())
            commit = commit_of(folder)
            url = f"{self.hub.endpoint}/{match[1]}/commit/{commit}"
            return self._send_json({"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})
        return self._refuse(404, "")

    def do_PUT(self) -> None:
        assert self.uploads is not None
        body, oid = self._body(), self.path.rsplit("/", 1)[1]
        status = 200 if hashlib.sha256(body).hexdigest() == oid else 400
        target = self.uploads.folder / "lfs" / oid
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(body)
        self._send(status, b"", {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""

    def _send_file(self, folder: Path, name: str) -> None:
        path = folder / name
        if path not in _files(folder):
            return self._refuse(404, "EntryNotFound")
        content, headers, status = path.read_bytes(), {"ETag": f'"{_etag(path)}"'}, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            headers["Content-Range"] = f"bytes {match[1]}-{len(content) - 1}/{len(content)}"
            content, status = content[int(match[1]) :], 206
        return self._send(status, content, {"X-Repo-Commit": commit_of(folder), **headers})

    def _send_json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if self.send:
            self.send(self, status, body, dict(headers))
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _tree_entry(folder: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
