"""Loading by name from a hub that misbehaves: a typed error in time, or a completed retry; and then, from a good hub
with the same cache, the right model: nothing wrong was kept."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests import hub_server
from tests.cases import READER, ROOT
from tests.torture import Attack, Outcome

NAME = "someone/reader"
SECONDS = 120
"""Longest that one try may take, on a busy machine."""
CHILD = """
import sys, time
from pathlib import Path
from conversion import checkpoint
from ved_core.errors import VedError
from ved_core.hub import resolve
import numpy as np
for line in sys.stdin:
    try:
        folder = resolve(line.strip())
        found, wanted = checkpoint.read(folder), checkpoint.read(Path(sys.argv[1]))
        same = found.keys() == wanted.keys() and all(np.array_equal(found[n], x) for n, x in wanted.items())
        texts = all((folder / n.name).read_bytes() == n.read_bytes() for n in Path(sys.argv[1]).glob("*.json"))
        print("loaded" if same and texts else "WRONG", flush=True)
    except (VedError, OSError) as error:
        kind = "refused" if isinstance(error, VedError) else "UNTYPED"
        print(kind, " ".join(f"{type(error).__name__}: {error}".split()), flush=True)
"""
Send = Callable[[Any, int, bytes, dict[str, str]], None]
"""How a misbehaving hub answers: handler, status, body, headers."""


def head(handler: Any, status: int, headers: dict[str, str]) -> None:
    """The beginning of an answer."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def full(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """As it should be."""
    head(handler, status, {**headers, "Content-Length": str(len(body))})
    if handler.command != "HEAD":
        handler.wfile.write(body)


def slow(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """A little at a time."""
    head(handler, status, {**headers, "Content-Length": str(len(body))})
    if handler.command != "HEAD":
        step = len(body) // 20 + 1
        for first in range(0, len(body), step):
            handler.wfile.write(body[first : first + step])
            time.sleep(0.02)


def silent(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """Half, and then nothing for longer than anybody waits."""
    head(handler, status, {**headers, "Content-Length": str(len(body))})
    if handler.command != "HEAD":
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        time.sleep(6)


def cut(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """Some of it, and the connection is gone."""
    head(handler, status, {**headers, "Content-Length": str(len(body))})
    if handler.command != "HEAD":
        handler.wfile.write(body[: handler.rng.randrange(len(body) + 1)])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def reset(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def short(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """A size that is said to be smaller, and is."""
    full(handler, status, body[: len(body) // 3], headers)


def long(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """More than the listing says."""
    full(handler, status, body + b"\0" * 4096, headers)


def page(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """The page of some proxy, under the file's own tag."""
    text = b"<!doctype html><title>Please log in</title>" + b" " * handler.rng.randrange(2000)
    full(handler, 200, text, {**headers, "Content-Type": "text/html"})


def broken(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """An error of the server."""
    full(handler, handler.rng.choice((500, 502, 503, 504)), b"oops", {})


def disguise(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """The same page, from the first question about the file on."""
    full(handler, 200, b"<!doctype html><title>Please log in</title>", {**headers, "Content-Type": "text/html"})


WAYS: dict[str, Send] = {
    each.__name__: each for each in (slow, silent, cut, reset, short, long, page, broken, disguise)
}
TIMES = {"once": 1, "three times": 3, "always": 10**9}
FILES = ("model.safetensors", "config.json", "/api/models/")


class Misbehaviour:
    """What a hub does to some answers, so many times."""

    def __init__(self, way: str, file: str, times: int, rng: random.Random) -> None:
        self.send, self.file, self.left, self.rng = WAYS[way], file, times, rng

    def __call__(self, handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.rng = self.rng
        chosen = self.file in handler.path and self.left > 0 and len(body) > 0
        chosen = chosen and (handler.command != "HEAD" or self.send is disguise)
        self.left -= chosen
        (self.send if chosen else full)(handler, status, body, headers)


def run(seed: int, count: int) -> Iterator[Outcome]:
    """So many hubs, over all ways to misbehave."""
    rng = random.Random(seed)
    every = [
        (way, file, times) for times in TIMES for file in FILES for way in WAYS if way != "other" or file == FILES[0]
    ]
    for number in range(count):
        chosen = every[number % len(every)] if count >= len(every) else rng.choice(every)
        yield attempt(*chosen, rng)


def attempt(way: str, file: str, times: str, rng: random.Random) -> Outcome:
    """Load from a hub that misbehaves, then from one that does not, with one cache."""
    title = f"{way}, {times}, {file}"
    with tempfile.TemporaryDirectory() as cache:
        first = load(cache, Misbehaviour(way, file, TIMES[times], rng))
        if first.partition(" ")[0] not in ("loaded", "refused"):
            return Outcome(title, "failed", first)
        if NAME not in first and first != "loaded" and str(cache) not in first:
            return Outcome(title, "failed", f"the error names neither the model nor its file: {first}")
        then = load(cache, None)
        if then != "loaded":
            return Outcome(title, "failed", f"{first}; and then, from a good hub: {then}")
    return Outcome(title, "survived" if first == "loaded" else "refused", first)


def load(cache: str, misbehaviour: Misbehaviour | None) -> str:
    """What comes of one try: "loaded", or "refused" and why."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": cache, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    environment |= {
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    with hub_server.serve({NAME: READER}, send=misbehaviour) as hub:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(READER)],
            input=NAME,
            env={**environment, "HF_ENDPOINT": hub.endpoint},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    said = done.stdout.strip()
    return said or f"status {done.returncode}: {json.dumps(done.stderr[-800:])}"


ATTACK = Attack("loading by name from a hub that misbehaves", 30, run, short=5)
