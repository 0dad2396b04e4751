"""`ved read`: images to text."""

import argparse
import gc
import glob
import importlib
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ved_cli import decoding, looking
from ved_cli.readings import Readings
from ved_core.bundled import READER
from ved_core.errors import ImageError, VedError
from ved_core.processing import without_torch_advice

if TYPE_CHECKING:
    from ved_core.pipeline import ImageToText, Reading

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Which files of a folder are images. A file that is named is tried whatever its suffix."""

FRAMEWORKS = {"flax": "flax", "torch": "torch"}
"""Name -> the package that it needs; the first that is installed is the default."""

EPILOG = """exit status:
  0  all images were read
  1  some could not be; each is named on stderr and, as {"image": ..., "error": ...}, in JSON. With --resume, those of
     the runs before count too
  2  it ended early: wrong usage, a model that cannot be loaded, a disk that is full
  130  interrupted; what is in --output stays there for --resume, and so it does however a run is ended"""

FEW = 8
"""More images than these get a progress bar."""


def add_parser(commands: Any) -> None:
    """Add `read` to the subcommands."""
    parser = commands.add_parser(
        "read",
        help="read text out of images",
        description="Read text out of images. Prints a line for each: its name, the confidence (the geometric mean of "
        "the tokens' probabilities), the text. With --json, one JSON object a line.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, folder of images, quoted glob pattern, or @FILE: a list of images, one a line; @- from stdin",
    )
    parser.add_argument("--model", default=str(READER), metavar="FOLDER_OR_NAME", help="checkpoint folder or hub name")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="what computes (default: flax where it is installed)")
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.jsonl", help="write JSON objects there, one a line, each image once"
    )
    parser.add_argument("--resume", action="store_true", help="go on with --output: leave out what is in it already")
    parser.add_argument("--stream", action="store_true", help="print each text as it comes, one image at a time")
    looking.add_arguments(parser)
    parser.add_argument("--no-check-digests", action="store_true", help="load files that ved_digests.json disowns, too")
    decoding.add_arguments(parser)
    parser.set_defaults(run=run, leaves_at_once=True)


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
    if options.stream and options.output:
        raise VedError("--stream prints texts as they come: leave --output out")
    if options.resume and not options.output:
        raise VedError("--resume goes on with a file of readings: name it with --output")
    looking.check(options)
    names = expand(options.images)
    if options.output:
        with Readings(options.output, options.resume) as readings:
            return write(options, names, readings)
    paths = list(names)
    pipeline, arguments = loaded(options)
    failed = (stream if options.stream else read)(pipeline, paths, arguments, options)
    if failed:
        say(f"ved: {failed} of {len(paths)} images could not be read", sys.stderr)
    return 1 if failed else 0


def loaded(options: argparse.Namespace) -> tuple["ImageToText", dict[str, Any]]:
    """What reads, and the options of `generate`."""
    name = framework(options)
    if options.own_process:
        gc.disable()  # it would look through all that is imported and loaded to stay: up to 0.7 s
        prepare(name)
    pipeline = importlib.import_module(f"ved_{name}").ImageToText.from_pretrained(
        options.model, check_digests=False if options.no_check_digests else None
    )
    options.pipeline = pipeline  # held until this process is left: freeing it takes a tenth of a second
    if options.own_process:
        gc.freeze()
        gc.enable()
    arguments = decoding.given(options)
    if arguments.get("do_sample"):
        arguments |= pipeline.seeded(options.seed)
    return pipeline, arguments


def write(options: argparse.Namespace, names: Iterator[str], readings: Readings) -> int:
    """Read into a file what is not in it yet, holding a batch in memory; the exit status."""
    new = (name for name in names if name not in readings.names)
    first = list(itertools.islice(new, options.batch_size))
    if first:
        pipeline, arguments = loaded(options)
        ahead, paths = itertools.tee(itertools.chain(first, new))
        results = pipeline.stream(ahead, batch_size=len(first), **arguments)
        bar = tqdm_of(paths) if sys.stderr.isatty() else paths
        try:
            for path, result in zip(bar, results, strict=True):
                if path in readings.names:  # named twice
                    continue
                readings.add(entry_of(path, result))
                if isinstance(result, ImageError):
                    say(f"ved: {complaint(path, result)}", sys.stderr)
        except KeyboardInterrupt:
            say(
                f"ved: interrupted: {len(readings.names)} images are in {readings.path}; go on with --resume",
                sys.stderr,
            )
            raise
    if readings.failed:
        say(f"ved: {readings.failed} of {len(readings.names)} images could not be read", sys.stderr)
    return 1 if readings.failed else 0


def read(pipeline: "ImageToText", paths: list[str], arguments: dict[str, Any], options: argparse.Namespace) -> int:
    """Read the images in batches and print a line for each; returns how many failed."""
    sheet = looking.Sheet(options)
    results = sheet.readings(pipeline, paths, batch_size=min(options.batch_size, len(paths)), **arguments)
    width = max(map(len, paths))
    failed = 0
    for path, result in zip(progress(paths), results, strict=True):
        entry, line = entry_of(path, result), None
        if isinstance(result, ImageError):
            failed += 1
            say(f"ved: {complaint(path, result)}", sys.stderr)
        else:
            entry |= sheet.fields()
            lines = [(path, result), *(("", other) for other in result.alternatives)]
            line = "\n".join(f"{name:<{width}}  {one.confidence:.3f}  {one.text}" for name, one in lines)
        if options.json:
            line = json.dumps(entry, ensure_ascii=False)
        if line is not None:
            say(line, sys.stdout)
    sheet.save()
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


def entry_of(path: str, result: "Reading | ImageError") -> dict[str, Any]:
    """A result as a JSON-ready object."""
    if isinstance(result, ImageError):
        return {"image": path, "error": complaint(path, result)}
    return {"image": path, **fields(result)}


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


def prepare(name: str) -> None:
    """Let this process, which does nothing but read, begin sooner: transformers, which takes long to see PyTorch, does
    not see it, and JAX's programs are kept for the next process."""
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        with without_torch_advice():
            importlib.import_module("transformers.image_processing_utils")
        if name == "torch":
            del sys.modules["torch"]
    if name == "flax":
        importlib.import_module("ved_flax.compilation_cache").keep_compiled()


def expand(names: Iterable[str]) -> Iterator[str]:
    """The files that are meant: a folder's images and a pattern's matches in order, a list's lines, anything else as it
    is. What matches nothing stays, and is reported like an unreadable image. Raises VedError for a list that is not
    there."""
    names = list(names)
    for name in names:
        if is_list(name) and name != "@-" and not Path(name[1:]).is_file():
            raise VedError(f"list {name[1:]!r}: no such file; @FILE is a file of image names, one a line")
    return itertools.chain.from_iterable(map(inside, names))


def inside(name: str) -> Iterator[str]:
    """The files that one argument means."""
    if Path(name).is_dir():
        found = sorted(str(path) for path in Path(name).iterdir() if path.suffix.lower() in SUFFIXES)
    elif is_list(name):
        yield from listed(name[1:])
        return
    elif glob.has_magic(name) and not Path(name).exists():
        found = sorted(glob.glob(name, recursive=True))
    else:
        found = []
    yield from found or [name]


def is_list(name: str) -> bool:
    """Whether an argument is a list of images, and no image of such a name."""
    return name.startswith("@") and not Path(name).exists()


def listed(name: str) -> Iterator[str]:
    """The lines of a file, or of stdin, as they come: names, taken as they are."""
    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        for line in file:
            if line := line.rstrip(b"\r\n"):
                yield os.fsdecode(line)


def progress(paths: list[str]) -> Iterable[str]:
    """The paths, with a progress bar on a terminal where they are many."""
    if len(paths) <= FEW or not sys.stderr.isatty():
        return paths
    return tqdm_of(paths)


def tqdm_of(paths: Iterable[str]) -> Iterable[str]:
    """The paths, with a progress bar."""
    from tqdm import tqdm

    return tqdm(paths, unit="image", file=sys.stderr)


def say(line: str, file: Any) -> None:
    """Print a line; on a terminal, above the progress bar."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=file)
        return
    try:
        print(line, file=file)
    except UnicodeEncodeError:  # a file's name may be any bytes
        print(line.encode("utf-8", "backslashreplace").decode().encode(file.encoding, "replace").decode(), file=file)
