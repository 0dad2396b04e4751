"""`ved read`: images to text."""

import argparse
import glob
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ved_cli import decoding
from ved_core.bundled import READER
from ved_core.errors import ImageError, VedError

if TYPE_CHECKING:
    from ved_core.pipeline import ImageToText, Reading

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Which files of a folder are images. A file that is named is tried whatever its suffix."""

FRAMEWORKS = {"flax": "flax", "torch": "torch"}
"""Name -> the package that it needs; the first that is installed is the default."""

FEW = 8
"""More images than these get a progress bar."""


def add_parser(commands: Any) -> None:
    """Add `read` to the subcommands."""
    parser = commands.add_parser(
        "read",
        help="read text out of images",
        description="Read text out of images. Prints a line for each: its name, the confidence (the geometric mean of "
        "the tokens' probabilities), the text. With --json, one JSON object a line.",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder of images, or quoted glob pattern"
    )
    parser.add_argument("--model", default=str(READER), metavar="FOLDER_OR_NAME", help="checkpoint folder or hub name")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="what computes (default: flax where it is installed)")
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    parser.add_argument("--stream", action="store_true", help="print each text as it comes, one image at a time")
    decoding.add_arguments(parser)
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Read the images; the exit status is 1 where one of them failed."""
    if options.stream and options.json:
        raise VedError("--stream prints plain text as it comes: leave --json out")
    paths = list(expand(options.images))
    name = framework(options)
    if options.own_process and name == "flax":
        prepare_flax()
    pipeline = importlib.import_module(f"ved_{name}").ImageToText.from_pretrained(options.model)
    arguments = decoding.given(options)
    if arguments.get("do_sample"):
        arguments |= pipeline.seeded(options.seed)
    failed = (stream if options.stream else read)(pipeline, paths, arguments, options)
    if failed:
        say(f"ved: {failed} of {len(paths)} images could not be read", sys.stderr)
    return 1 if failed else 0


def read(pipeline: "ImageToText", paths: list[str], arguments: dict[str, Any], options: argparse.Namespace) -> int:
    """Read the images in batches and print a line for each; returns how many failed."""
    results = pipeline.stream(paths, batch_size=min(options.batch_size, len(paths)), **arguments)
    width = max(map(len, paths))
    failed = 0
    for path, result in zip(progress(paths), results, strict=True):
        if isinstance(result, ImageError):
            failed += 1
            say(f"ved: {complaint(path, result)}", sys.stderr)
            entry: dict[str, Any] = {"image": path, "error": complaint(path, result)}
            line = None
        else:
            entry = {"image": path, **fields(result)}
            lines = [(path, result), *(("", other) for other in result.alternatives)]
            line = "\n".join(f"{name:<{width}}  {one.confidence:.3f}  {one.text}" for name, one in lines)
        if options.json:
            line = json.dumps(entry, ensure_ascii=False)
        if line is not None:
            say(line, sys.stdout)
    return failed


def stream(pipeline: "ImageToText", paths: list[str], arguments: dict[str, Any], options: argparse.Namespace) -> int:
    """Print each image's text as it comes; returns how many failed."""
    failed = 0
    width = max(map(len, paths))
    for path in paths:
        try:
            pieces = pipeline.stream_text(path, **arguments)
            piece = next(pieces, "")
            print(f"{path:<{width}}  {piece}", end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
        except ImageError as error:
            failed += 1
            say(f"ved: {complaint(path, error)}", sys.stderr)
    return failed


def complaint(path: str, error: ImageError) -> str:
    """What was wrong with an image; a folder is here only where `expand` found none in it."""
    if Path(path).is_dir():
        suffixes = ", ".join(sorted(SUFFIXES))
        return f"folder {path!r}: has no images ({suffixes}); for those in its subfolders, '{path}/**/*.png'"
    return str(error)


def fields(result: "Reading") -> dict[str, Any]:
    """A reading as JSON-ready values."""
    entry: dict[str, Any] = {"text": result.text, "confidence": round(result.confidence, 6)}
    if result.alternatives:
        entry["alternatives"] = [fields(other) for other in result.alternatives]
    return entry


def framework(options: argparse.Namespace) -> str:
    """The framework that was asked for, or the first that is installed. Raises VedError where there is none."""
    asked = [options.framework] if options.framework else list(FRAMEWORKS)
    for name in asked:
        if importlib.util.find_spec(FRAMEWORKS[name]):
            return name
    raise VedError(f'{" and ".join(asked)}: not installed; pip install "ved[{asked[0]}]"')


def prepare_flax() -> None:
    """Let this process, which does nothing but read, begin sooner: JAX's programs are kept for the next one."""
    # transformers would import PyTorch, where it is installed, and take seconds for it.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    importlib.import_module("ved_flax.compilation_cache").keep_compiled()


def expand(names: Iterable[str]) -> Iterator[str]:
    """The files that are meant: a folder's images and a pattern's matches in order, anything else as it is.

    What matches nothing stays in the list, and is reported like an unreadable image.
    """
    for name in names:
        if Path(name).is_dir():
            inside = sorted(str(path) for path in Path(name).iterdir() if path.suffix.lower() in SUFFIXES)
        elif glob.has_magic(name) and not Path(name).exists():
            inside = sorted(glob.glob(name, recursive=True))
        else:
            inside = [name]
        yield from inside or [name]


def progress(paths: list[str]) -> Iterable[str]:
    """The paths, with a progress bar on a terminal where they are many."""
    if len(paths) <= FEW or not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    return tqdm(paths, unit="image", file=sys.stderr)


def say(line: str, file: Any) -> None:
    """Print a line; on a terminal, above the progress bar."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=file)
    else:
        print(line, file=file)
