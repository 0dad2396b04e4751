"""Bad and odd images: each gives one ImageError that names it, or the right pixels; none ends a batch."""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.cases import DIGITS, READER, ROOT
from tests.torture import Attack, Outcome
from tests.torture._pictures import KINDS, SOLID, STORED, bombs, encoded, noise, turned
from ved_core.errors import ImageError
from ved_core.images import load_image

Case = tuple[str, Any, Callable[[Image.Image], bool] | None]
"""What it is, the source, and whether pixels are right; None where the source has to be refused."""
SECONDS, MEGABYTES = 5, 1000
"""What a bomb may take: the pixels that Pillow's own limit allows, in RGBA and RGB, are 600 MB."""
CHILD = """
import resource, sys, time
from ved_core.errors import ImageError
from ved_core.images import load_image
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
load_image([[0]])
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
if len(sys.argv) > 2:
    import os
    os.setgid(65534), os.setuid(65534)
try:
    load_image(sys.argv[1])
    print("survived")
except ImageError as error:
    print("refused", error)
except BaseException as error:
    print("failed", repr(error))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(time.process_time() - began, used >> 10)
"""


def is_solid(colour: tuple[int, int, int], within: int = 0) -> Callable[[Image.Image], bool]:
    """Whether all pixels are of a colour."""
    return lambda image: bool((np.abs(np.asarray(image).astype(int) - colour) <= within).all())


def truncated(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Cut anywhere: what is missing must be noticed, unless no pixel is."""
    for i in range(10**6):
        kind = KINDS[i % len(KINDS)]
        image = noise(rng, rng.randrange(2, 60), rng.randrange(2, 60))
        whole = encoded(image, kind)
        right = np.asarray(load_image(whole))
        path = folder / f"cut{i}.{kind.lower()}"
        path.write_bytes(whole[: rng.randrange(len(whole))])
        yield f"{kind} cut", path, lambda image, right=right: np.array_equal(np.asarray(image), right)


def damaged(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Bytes changed: refused, or some pixels."""
    for i in range(10**6):
        kind = KINDS[i % len(KINDS)]
        data = bytearray(encoded(noise(rng, 30, 20), kind))
        for _ in range(rng.choice((1, 4, 16))):
            data[rng.randrange(rng.choice((64, len(data))))] = rng.randrange(256)
        path = folder / f"damaged{i}"
        path.write_bytes(data)
        yield f"{kind} damaged", path, lambda image: image.mode == "RGB" and image.width * image.height > 0


def modes(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Every mode, in memory and in the formats that keep it."""
    for i, (mode, colour, rgb) in enumerate(SOLID):
        size = rng.choice(((1, 1), (1, 300), (300, 1), (3, 2)))
        image = Image.new(mode, size, colour)
        yield f"mode {mode} {colour}", image, is_solid(rgb, within=3)
        for kind, kept in STORED.items():
            if mode in kept and not (mode == "F" and colour == 128.0):
                path = folder / f"mode{i}.{kind.lower()}"
                path.write_bytes(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
                yield f"mode {mode} {colour} in {kind}", path, is_solid(rgb, within=3)


def turns(rng: random.Random, folder: Path) -> Iterator[Case]:
    """EXIF's orientations, and values that are none."""
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255
    for orientation in (*range(10), 255, 65535):
        for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = folder / f"turned{orientation}.{kind.lower()}"
            path.write_bytes(encoded(Image.fromarray(turned(upright, orientation)), kind, exif=exif))

            def right(image: Image.Image) -> bool:
                grey = np.asarray(image.convert("L")).astype(int)
                return grey.shape == upright.shape and bool(np.abs(grey - upright).max() < 48)

            yield f"{kind} of orientation {orientation}", path, right


def frames(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Of an animation or of several pages, the first; whatever the file is called."""
    for i, kind in enumerate(("GIF", "PNG", "WEBP", "TIFF") * 3):
        colour = (rng.choice((0, 255)), rng.choice((0, 255)), 0)
        others = [Image.new("RGB", (5, 4), (9, 9, 250)) for _ in range(rng.randrange(1, 6))]
        options = {"lossless": True} if kind == "WEBP" else {}
        path = folder / f"frames{i}.{rng.choice(('png', 'jpg', 'txt', 'pdf', 'svg'))}"
        path.write_bytes(
            encoded(Image.new("RGB", (5, 4), colour), kind, save_all=True, append_images=others, **options)
        )
        yield f"{kind} of {len(others) + 1} frames as {path.suffix}", path, is_solid(colour)


def nothing(rng: random.Random, folder: Path) -> Iterator[Case]:
    """What is no image, or no file."""
    texts = {"html": b"<!doctype html><html></html>", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    texts |= {"pdf": b"%PDF-1.7\n%", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"}
    texts |= {"empty": b"", "zip": b"PK\3\4" + bytes(40), "zeros": bytes(4096), "wmf": b"\xd7\xcd\xc6\x9a" + bytes(99)}
    for name, data in texts.items():
        for suffix in ("png", "jpg", name):
            (folder / f"{name}.{suffix}").write_bytes(data)
            yield f"{name} as .{suffix}", folder / f"{name}.{suffix}", None
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.png"))
        for name in ("folder", "dangling", "loop", "pipe", "s", "absent"):
            yield f"{name}.png", folder / f"{name}.png", None
    for name in ("/dev/zero", "/proc/self/mem", "nul\0.png", "x" * 5000, "https://example.org/x.png", ""):
        yield f"the name {name[:20]!r}", name, None


def names(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Names of every kind are names."""
    for name in ("a\nb.png", "\udcff\udcfe.png", "-rf.png", "@list.png", "[0-9]*.png", " .png", "ü" * 100, "a" * 250):
        path = folder / name
        path.write_bytes(encoded(Image.new("RGB", (2, 2), (5, 6, 7)), "PNG"))
        yield f"the name {name[:20]!r}", path, is_solid((5, 6, 7))


BEGINNING = 400
"""Of a name that an error's text has to have: errors leave out the middle of what is longer than a screen."""


def case(each: Case) -> Outcome:
    """Load one image."""
    name, source, right = each
    began = time.process_time()
    try:
        image = load_image(source)
    except ImageError as error:
        shown = repr(os.fspath(source)) if isinstance(source, str | Path) else "image"
        if shown[:BEGINNING] not in str(error):
            return Outcome(name, "failed", f"the error does not name it: {error}")
        if right is not None and name.startswith(("mode", "the name")):
            return Outcome(name, "failed", f"refused: {error}")
        found = Outcome(name, "refused", str(error))
    except Exception as error:
        return Outcome(name, "failed", f"{type(error).__name__}: {error}")
    else:
        if right is None or image.mode != "RGB" or not right(image):
            return Outcome(name, "failed", f"gave {image.mode} {image.size}")
        found = Outcome(name, "survived")
    if time.process_time() - began > SECONDS:
        return Outcome(name, "failed", f"took {time.process_time() - began:.1f} s")
    return found


def child(name: str, path: Path, *unprivileged: str) -> Outcome:
    """Load an image in a process of its own, and look at what that takes."""
    command = [sys.executable, "-c", CHILD, str(path), *unprivileged]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.splitlines()
    if len(lines) != 2:
        return Outcome(name, "failed", f"status {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")
    verdict, _, detail = lines[0].partition(" ")
    seconds, megabytes = map(float, lines[1].split())
    if verdict == "failed" or seconds > SECONDS or megabytes > MEGABYTES:
        return Outcome(name, "failed", f"{lines[0]}; {seconds:.1f} s, {megabytes:.0f} MB")
    if verdict == "refused" and repr(str(path)) not in detail:
        return Outcome(name, "failed", f"the error does not name it: {detail}")
    return Outcome(name, "refused" if verdict == "refused" else "survived", f"{seconds:.1f} s, {megabytes:.0f} MB")


@cache
def reader(framework: str) -> Any:
    """The bundled reader."""
    module = importlib.import_module(f"ved_{framework}")
    return module.ImageToText.from_pretrained(READER)


def batch(rng: random.Random, folder: Path, number: int) -> Outcome:
    """Bad images among good ones: every good one is read, every bad one named."""
    frameworks = [name for name in ("flax", "torch") if importlib.util.find_spec(name)]
    framework = frameworks[number % len(frameworks)]
    samples = json.loads((DIGITS / "expected.json").read_text())["samples"]
    images: list[tuple[Path, str | None]] = []
    for i in range(12):
        good = rng.randrange(len(samples))
        path = DIGITS / f"{good:02d}.png"
        images.append((path, samples[good]["greedy_text"]))
        if rng.random() < 0.5:
            bad = folder / f"batch{number}-{i}.png"
            bad.write_bytes(path.read_bytes()[: rng.randrange(200)])
            images.insert(rng.randrange(len(images)), (bad, None))
    found = list(reader(framework).stream([str(path) for path, _ in images], batch_size=4))
    for (path, text), result in zip(images, found, strict=True):
        if isinstance(result, ImageError) != (text is None) or (text is not None and result.text != text):
            return Outcome(f"{framework}: a batch", "failed", f"{path}: {result!r} instead of {text!r}")
    return Outcome(f"{framework}: a batch of {len(images)}", "survived")


PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}},
    "Donut": {"image_processor_type": "DonutImageProcessor", "size": {"height": 64, "width": 48}},
    "DeiT": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 56, "width": 56}, "crop_size": 48},
    "CLIP": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, "crop_size": 48},
    "no resizing": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
}


def thin(folder: Path, name: str, size: tuple[int, int]) -> Outcome:
    """An image of one row or column between two good ones, with the image processors of several models."""
    from ved_core.processing import Processor
    from ved_flax import ImageToText

    place = folder / f"processor {name}"
    place.mkdir(exist_ok=True)
    (place / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    processor = Processor(place)
    processor.tokenizer = Processor(READER).tokenizer
    path = folder / f"{size[0]}x{size[1]}.png"
    Image.new("RGB", size, (200, 200, 200)).save(path)
    title = f"{size[0]} x {size[1]} with {name}"
    good = DIGITS / "00.png"
    try:
        first, middle, last = ImageToText(reader("flax").model, processor).stream([good, path, good], batch_size=3)
    except Exception as error:
        return Outcome(title, "failed", f"{type(error).__name__}: {error}")
    if isinstance(middle, ImageError):
        named = repr(str(path)) in str(middle)
        return Outcome(title, "refused" if named else "failed", str(middle))
    if isinstance(first, ImageError) or isinstance(last, ImageError) or first.text != last.text:
        return Outcome(title, "failed", f"its neighbours: {first}, {last}")
    return Outcome(title, "survived")


def run(seed: int, count: int) -> Iterator[Outcome]:
    """All fixed cases and as many random ones as are asked for, or some of each."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fixed: list[Callable[[], Outcome]] = []
        for kind in (modes, turns, frames, nothing, names):
            fixed += [lambda each=each: case(each) for each in kind(rng, folder)]
        for i, (name, data) in enumerate(bombs()):
            (folder / f"bomb{i}").write_bytes(data)
            fixed.append(lambda name=name, i=i: child(name, folder / f"bomb{i}"))
        if os.getuid() == 0:
            os.chmod(folder, 0o755)
            path = folder / "unreadable.png"
            path.write_bytes((DIGITS / "00.png").read_bytes())
            path.chmod(0)
            fixed.append(lambda: child("unreadable", path, "as nobody"))
        if importlib.util.find_spec("flax"):
            sizes = ((1, 1), (1, 3000), (3000, 1), (2, 20000), (7, 48))
            fixed += [lambda n=name, s=size: thin(folder, n, s) for name in PROCESSORS for size in sizes]
        fixed += [lambda i=i: batch(random.Random(seed + i), folder, i) for i in range(10)]
        share = 1.0 if count >= 300 else 0.5 * count / len(fixed)
        chosen = fixed if share == 1 else rng.sample(fixed, int(share * len(fixed)))
        for attempt in chosen:
            yield attempt()
        random_cases = [truncated(rng, folder), damaged(rng, folder)]
        for i in range(max(count - len(chosen), 100 if share == 1 else 0)):
            yield case(next(random_cases[i % 2]))


ATTACK = Attack("images", 300, run, short=40)
