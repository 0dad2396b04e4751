"""Pickles that would run code, as weights: none of their names is resolved; and what we write needs no trust."""

import io
import itertools
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from conversion.convert import convert
from conversion.formats.torch_bin import MAGIC
from conversion.formats.torch_pickle import ALLOWED, INERT
from tests import hostile
from tests.cases import FIXTURES, ROOT
from tests.torture import Attack, Outcome
from tests.torture.malformed import outcome
from tests.torture.worker import Worker

NAMES = (
    *("os system", "posix system", "subprocess Popen", "builtins eval", "builtins exec", "builtins getattr"),
    *("builtins __import__", "builtins open", "importlib import_module", "runpy run_path", "pty spawn"),
    *("pickle loads", "torch load", "torch.storage _load_from_bytes", "torch.jit load", "numpy load", "marshal loads"),
    *("operator attrgetter", "functools partial", "types CodeType", "types FunctionType", "socket create_connection"),
    *("urllib.request urlopen", "webbrowser open", "shutil rmtree", "pathlib Path.unlink", "_codecs encode"),
    *(
        "torch._utils _rebuild_parameter.__globals__",
        "torch FloatStorage.__class__",
        "collections OrderedDict.fromkeys",
    ),
    *(
        "conversion.formats.torch_pickle _Unpickler",
        "ved_core.hub resolve",
        "argparse Namespace.__init__",
        "",
        "a\nb c",
    ),
)
"""Module and name, as pickles have them."""


def payloads() -> Iterator[tuple[str, bytes]]:
    """What a pickle of protocol 2 or later may hold, without its first two bytes and its stop."""
    for name in NAMES:
        module, _, inside = name.partition(" ")
        called = hostile.text("touch outside-secret")
        yield f"GLOBAL {name!r}", f"c{module}\n{inside}\n".encode() + b"(" + called + b"tR"
        stacked = hostile.text(module) + hostile.text(inside) + b"\x93"
        yield f"STACK_GLOBAL {name!r}", stacked + b"(" + called + b"tR"
        yield f"NEWOBJ {name!r}", stacked + b"(" + called + b"t\x81"
        yield f"state of {name!r}", hostile.state(hostile.tensor()) + b"0" + stacked + b"(" + called + b"tR"
    yield "INST", b"(" + hostile.text("true") + b"ios\nsystem\n"
    yield "OBJ", b"(cos\nsystem\n" + hostile.text("true") + b"o"
    yield "EXT1", b"\x82\x01"
    yield "EXT4", b"\x84\x01\x00\x00\x00"
    yield "NEWOBJ_EX", b"ccollections\nOrderedDict\n)}\x92"
    yield "PERSID", b"Pos.system\n"
    yield "attributes of an allowed name", hostile.BUILD_FUNCTION
    yield "attributes of a dtype", hostile.BUILD_DTYPE
    yield (
        "a storage's key is a path",
        hostile.state(hostile.tensor()).replace(hostile.text("0"), hostile.text("../../x")),
    )


def archives(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """The ways in which a file may hold a pickle."""
    yield "zip", hostile.zipped(payload)
    yield "in a state dict, zip", hostile.zipped(hostile.state(payload))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x/inner.zip", hostile.zipped(payload))
        archive.writestr("x/data.pkl", b"\x80\x02" + hostile.state(payload) + b".")
    yield "nested zip", inner.getvalue()
    heads = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True})]
    evil = b"\x80\x02" + payload + b"."
    yield "before 1.6", b"".join([*heads, evil, pickle.dumps([], 2)])
    yield "before 1.6, first of all", evil + b"".join(heads)
    yield "before 1.6, among the keys", b"".join([*heads, pickle.dumps({}, 2), evil])
    yield "bare", evil


def run(seed: int, count: int) -> Iterator[Outcome]:
    """Payloads and ways in turn, through both frameworks; and at the end what is written."""
    cases = [(f"{name}, {way}", data) for name, payload in payloads() for way, data in archives(payload)]
    random.Random(seed).shuffle(cases)
    print(
        f"names that are resolved: {', '.join(sorted(ALLOWED))}; read as nothing: {', '.join(INERT)}", file=sys.stderr
    )
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        folder = Path(place, "x")
        convert(FIXTURES / "vit-gpt2", folder, "torch")
        ways = itertools.cycle(("read", "flax", "torch"))
        for (case, data), way in zip(cases[: max(1, count - 2)], ways, strict=False):
            (folder / "pytorch_model.bin").unlink()
            (folder / "pytorch_model.bin").write_bytes(data)
            found = outcome(worker, f"{case}, {way}", way, folder)
            run_code = [path for path in (ROOT, folder, Path.cwd()) if (path / "outside-secret").exists()]
            yield Outcome(found.case, "failed", f"has run: {run_code}") if run_code else found
        shutil.rmtree(folder)
        convert(FIXTURES / "vit-gpt2", folder, "torch")
        yield opened_by_torch(folder / "pytorch_model.bin")
        yield no_loads()


def opened_by_torch(path: Path) -> Outcome:
    """What we write opens where nothing is trusted."""
    code = "import sys, torch; print(len(torch.load(sys.argv[1], weights_only=True)))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    fine = done.returncode == 0 and int(done.stdout) > 0
    return Outcome(
        "torch.load(weights_only=True) of what we write", "survived" if fine else "failed", done.stderr[-500:]
    )


def no_loads() -> Outcome:
    """No code of ours loads with anything that runs what it loads."""
    dangerous = re.compile(r"\b(torch\.load|pickle\.loads?|joblib|dill|np\.load\(.*allow_pickle=True|exec|eval)\(")
    packages = ("ved_core", "conversion", "ved_flax", "ved_torch", "ved_cli")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    found = [f"{path}:{i}" for path in sources for i, line in enumerate(path.read_text().splitlines(), 1)
             if dangerous.search(line) and ".eval(" not in line]  # fmt: skip
    return Outcome("our own code", "failed" if found else "survived", ", ".join(found))


ATTACK = Attack("pickle payloads", 120, run)
