"""The command line of `python -m conversion` and `ved convert`; formats are imported only when used."""

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ved_core.errors import VedError
from ved_core.hub import WEIGHT_PATTERNS

if TYPE_CHECKING:
    from conversion.listing import Listing

DESCRIPTION = """Convert a checkpoint: a folder, a file, or a name on the Hugging Face hub, whose format is found by
looking. TARGET becomes a complete checkpoint folder, or is left as it was."""
EPILOG = """examples:
  {prog} SOURCE TARGET --to flax               any format to any format
  {prog} SOURCE TARGET --to torch --part decoder
  {prog} TARGET --encoder A --decoder B        two halves joined
  {prog} --list SOURCE                         what is in a checkpoint"""
FORMATS = tuple(WEIGHT_PATTERNS)
DTYPES = ("bf16", "fp16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("places", nargs="+", metavar="SOURCE TARGET", help="checkpoint, and the folder to write")
    parser.add_argument("--to", choices=FORMATS, help="format to write (default: safetensors)")
    parser.add_argument("--from", dest="wanted", choices=FORMATS, help="format to read, where SOURCE has several")
    parser.add_argument("--dtype", choices=DTYPES, help="round weights to it (default: as they are)")
    parser.add_argument(
        "--shard-size", metavar="SIZE", help="most bytes in a file, as 500MB or 2GB (default: one file)"
    )
    parser.add_argument("--part", choices=("encoder", "decoder"), help="write one half by itself")
    parser.add_argument("--encoder", metavar="A", help="join the encoder out of A ...")
    parser.add_argument("--decoder", metavar="B", help="... with the decoder out of B")
    parser.add_argument("--config", metavar="FILE", help="config.json in place of the source's")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a name on the hub")
    parser.add_argument("--subfolder", metavar="NAME", help="folder inside a checkpoint")
    parser.add_argument("--no-check-digests", action="store_true", help="read files that ved_digests.json disowns, too")
    parser.add_argument("--list", action="store_true", help="print what is in SOURCE, write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Convert or list; the exit status is 0. Raises VedError."""
    from conversion.convert import convert, join
    from conversion.listing import describe

    joining = options.encoder is not None or options.decoder is not None
    wanted = [options.wanted] if options.wanted else None
    hub: dict[str, Any] = {"wanted": wanted, "revision": options.revision}
    to = options.to or "safetensors"
    output: dict[str, Any] = {"to": to, "dtype": options.dtype, "shard_size": options.shard_size}
    output["check_digests"] = False if options.no_check_digests else None
    if options.list:
        (source,) = places(options, 1, "--list takes one SOURCE")
        refuse(options, "--list", ("to", "dtype", "shard_size", "part", "encoder", "decoder", "no_check_digests"))
        listing = describe(source, config=options.config, subfolder=options.subfolder, **hub)
        if options.json:
            print(json.dumps(fields(listing)))
        else:
            show(listing)
    elif joining:
        if options.encoder is None or options.decoder is None or options.part:
            raise VedError("give both --encoder and --decoder, and no --part")
        if options.config or options.subfolder:
            raise VedError("--config and --subfolder do not go with --encoder and --decoder: give their folders")
        (target,) = places(options, 1, "with --encoder and --decoder, give TARGET alone")
        join(options.encoder, options.decoder, target, **output, **hub)
        told(target, options.json)
    else:
        source, target = places(options, 2, "give SOURCE and TARGET")
        convert(source, target, part=options.part, config=options.config, subfolder=options.subfolder, **output, **hub)
        told(target, options.json)
    return 0


def told(target: str, as_json: bool) -> None:
    """Print which folder was written."""
    print(json.dumps({"target": target}) if as_json else target)


def fields(listing: "Listing") -> dict[str, Any]:
    """A listing as JSON-ready values."""
    tensors = [
        {"name": x.name, "dtype": str(x.dtype), "shape": list(x.shape), "bytes": x.nbytes, "role": x.role, "row": x.row}
        for x in listing.lines
    ]
    return {
        "checkpoint": str(listing.place),
        "architecture": listing.architecture,
        "format": listing.format.name,
        "parameters": listing.count("parameter"),
        "bytes": sum(line.nbytes for line in listing.lines),
        "tied": listing.ties,
        "missing": listing.missing,
        "tensors": tensors,
    }


def refuse(options: argparse.Namespace, mode: str, names: Iterable[str]) -> None:
    """Raise VedError where options are given that `mode` would pass over."""
    flags = (("--from" if name == "wanted" else f"--{name.replace('_', '-')}", name) for name in names)
    given = [flag for flag, name in flags if getattr(options, name)]
    if given:
        raise VedError(f"{' and '.join(given)} cannot go with {mode}: leave out one or the other")


def places(options: argparse.Namespace, count: int, advice: str) -> list[str]:
    """As many places as were to be given. Raises VedError."""
    if len(options.places) != count:
        raise VedError(f"{advice} (got {len(options.places)}: {' '.join(options.places)})")
    return options.places


def show(listing: "Listing") -> None:
    """Print a listing."""
    width = max((len(line.name) for line in listing.lines), default=0)
    shapes = {line.name: "x".join(map(str, line.shape)) or "scalar" for line in listing.lines}
    wide = max(map(len, shapes.values()), default=0)
    for line in listing.lines:
        row = f"  {line.row}" if line.row and line.row != line.name else ""
        size = f"{line.nbytes:>13,}"
        print(f"{line.name:<{width}}  {line.dtype:<9} {shapes[line.name]:>{wide}} {size}  {line.role:<10}{row}")
    print(f"\n{listing.place}: {listing.architecture}, {listing.format.title}")
    kinds = sorted({line.dtype for line in listing.lines})
    total = sum(line.nbytes for line in listing.lines)
    parameters, count = listing.count("parameter"), len(listing.lines)
    print(f"{parameters:,} parameters; {count} tensors of {', '.join(kinds)}; {total:,} bytes")
    for role, what in (("carried", "carried along, never used in decoding"), ("unexpected", "UNEXPECTED")):
        count = sum(line.role == role for line in listing.lines)
        if count:
            print(f"{count} tensors {what}")
    for tie in listing.ties:
        print(f"tied: {tie}")
    if listing.missing:
        print(f"{len(listing.missing)} tensors MISSING: {', '.join(listing.missing)}")
