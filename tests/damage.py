"""Files of every format, damaged at random: `python -m tests.damage FORMAT COUNT SEED` reads each and prints a line for
whatever ends otherwise than in tensors, a CheckpointError or a ConfigError, or takes too long or too much memory.

A process of its own: its memory is limited, and a crash of a library ends nothing else.
"""

import contextlib
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS
from tests.cases import FIXTURES, WEIGHTS_FILE
from ved_core import digests
from ved_core.errors import CheckpointError, ConfigError

MEMORY = 4 * 2**30
SECONDS = 5
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
SOURCE = FIXTURES / "vit-gpt2"


def sources(name: str, folder: Path) -> Iterator[Path]:
    """Small checkpoints of a format; TensorFlow's and PyTorch's also as other releases write them."""
    convert(SOURCE, folder / "plain", name)
    yield folder / "plain"
    if name != "orbax":
        convert(SOURCE, folder / "shards", name, shard_size="60KB")
        yield folder / "shards"
    if name == "tf":
        import h5py

        shutil.copytree(folder / "plain", folder / "packed", ignore=shutil.ignore_patterns(digests.FILE))
        with (
            h5py.File(folder / "plain" / "tf_model.h5") as old,
            h5py.File(folder / "packed" / "tf_model.h5", "w") as new,
        ):
            for key in old:
                group = new.create_group(key)
                group.attrs["weight_names"] = ["x"]
                for i, (name, item) in enumerate(list(items(old[key]))[:12]):
                    packed = {"compression": "gzip", "fletcher32": True} if item.ndim and i % 2 else {}
                    group.create_dataset(name, data=item[...], **packed)
        yield folder / "packed"
    if name == "torch" and (data := legacy(folder)):
        shutil.copytree(folder / "plain", folder / "legacy", ignore=shutil.ignore_patterns(digests.FILE))
        (folder / "legacy" / "pytorch_model.bin").write_bytes(data)
        yield folder / "legacy"


def items(group: "object") -> Iterator[tuple[str, "object"]]:
    """All datasets of an HDF5 group, by their names in it."""
    found: list[tuple[str, object]] = []
    group.visititems(lambda name, item: found.append((name, item)) if hasattr(item, "ndim") else None)  # type: ignore[attr-defined]
    yield from found


def legacy(folder: Path) -> bytes:
    """The file of before PyTorch 1.6, out of the archive's parts."""
    import pickle

    from conversion.formats import torch_bin

    with zipfile.ZipFile(folder / "plain" / "pytorch_model.bin") as archive:
        state = archive.read("pytorch_model/data.pkl")
        keys = sorted((n.rpartition("/")[2] for n in archive.namelist() if "/data/" in n), key=int)
        storages = [archive.read(f"pytorch_model/data/{key}") for key in keys]
    head = [pickle.dumps(part, 2) for part in (torch_bin.MAGIC, 1001, {"little_endian": True})]
    numbers = [struct.pack("<q", len(storage) // 4) + storage for storage in storages]
    return b"".join([*head, state, pickle.dumps(keys, 2), *numbers])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, left out, doubled or moved; mostly where structure is: at both ends."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        span = rng.choice((64, 512, 4096, len(data)))
        place = rng.randrange(max(1, min(span, len(data))))
        place = place if rng.random() < 0.6 else len(data) - 1 - place
        way = rng.random()
        if way < 0.4:
            data[place : place + 1] = bytes([rng.choice((*INTERESTING, rng.randrange(256)))])
        elif way < 0.6:
            data[place : place + 1] = bytes([(data[place] if data else 0) ^ (1 << rng.randrange(8))])
        elif way < 0.75:
            data[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, struct.pack("<q", rng.choice((1, -1)) << 62)))
        elif way < 0.85:
            del data[place : place + rng.randrange(1, 64)]
        elif way < 0.95:
            other = rng.randrange(max(1, len(data)))
            data[place:place] = data[other : other + rng.randrange(1, 64)]
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


def attempt(folder: Path) -> str | None:
    """What reading a folder did wrong."""
    limit = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        for tensor in checkpoint.read(folder, check_digests=False).values():
            np.asarray(tensor)
    except (CheckpointError, ConfigError):
        return None
    except BaseException:
        return traceback.format_exc(limit=-3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, limit)
    return None


class Late(BaseException):
    """It takes too long."""


def _late(*_: object) -> None:
    raise Late


def files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and any(each.owns(path.relative_to(folder).parts[0]) for each in FORMATS.values())
    )


def main(name: str, count: int, seed: int) -> None:
    """Damage `count` files and print what goes wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep = sys.argv[4:]
    with tempfile.TemporaryDirectory() as place:
        folders = list(sources(name, Path(place)))
        for number in range(count):
            rng = random.Random(seed * 1_000_003 + number)
            folder = rng.choice(folders)
            path = rng.choice(files(folder))
            whole = path.read_bytes()
            data = damaged(whole, rng)
            path.unlink()  # what is mapped stays as it is
            path.write_bytes(data)
            if keep:
                Path(keep[0]).write_bytes(data)
                Path(f"{keep[0]}.name").write_text(json.dumps([number, str(path)]))
            problem = attempt(folder)
            path.unlink()
            path.write_bytes(whole)
            if problem:
                print(f"{name} {seed} {number}: {path.name} in {folder.name}: {problem}", flush=True)
        for folder in folders:  # nothing has changed what the process knows of dtypes
            found = checkpoint.read(folder)
            expected = checkpoint.read(SOURCE / WEIGHTS_FILE)
            assert all(np.array_equal(found[key], x) for key, x in expected.items() if key in found)
    print("done")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
