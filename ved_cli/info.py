"""`ved info`: what a checkpoint would do, before anything of it is loaded."""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ved_cli.read import FRAMEWORKS
from ved_core.errors import printable

if TYPE_CHECKING:
    from conversion.inspection import Inspection, Weights


def add_parser(commands: Any) -> None:
    """Add `info` to the subcommands."""
    parser = commands.add_parser(
        "info",
        help="show what is in a checkpoint",
        description="Show what is in a checkpoint and what it would do: formats, architecture, sizes, pickles and the "
        "names they use, code that it asks for (nothing here runs it), and who can load it. Only headers are read. "
        " The exit status is 1 where no model can be loaded from it, or its digests do not hold.",
    )
    parser.add_argument("place", metavar="FOLDER_OR_NAME", help="checkpoint folder, or hub name, which is fetched")
    parser.add_argument(
        "--check-digests", action="store_true", help="read all files, and compare them with their digests"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is there. Raises VedError where nothing is."""
    from conversion.inspection import inspect
    from ved_core.hub import resolve

    folder = Path(options.place).expanduser()
    found = inspect(folder if folder.is_dir() else resolve(options.place), options.check_digests)
    if options.json:
        print(json.dumps(found.to_dict() | {"installed": installed()}, ensure_ascii=False))
    else:
        for line in lines(found):
            print(printable(line))
    return 0 if found.loads and found.digests in ("none", "there", "hold") else 1


def installed() -> list[str]:
    """The frameworks that are there to load it; both load everything that either does."""
    return [name for name in FRAMEWORKS if importlib.util.find_spec(FRAMEWORKS[name])]


def lines(found: "Inspection") -> Iterator[str]:
    """The report, as a person reads it."""
    yield found.place
    yield f"  architecture     {found.config or found.config_problem}"
    for weights in found.weights:
        yield from of_weights(weights)
    if found.link:
        yield f"  link             {found.link}"
    for each in found.pickles:
        names = ", ".join(each.names) or "no names"
        yield f"  pickle           {each.file}: {each.problem or names}"
        if each.refused:
            yield f"                   never resolved here, and code where others load it: {', '.join(each.refused)}"
    for file in found.code:
        yield f"  code             {file} (never run)"
    for wish in found.remote_code:
        yield f"  remote code      {wish} (never run)"
    yield f"  image processor  {'yes' if found.image_processor else 'no'}"
    yield f"  tokenizer        {'yes' if found.tokenizer else 'no'}"
    defaults = ", ".join(f"{name} = {value}" for name, value in found.generation.items())
    yield f"  generation       {defaults or 'as transformers has it'}"
    yield f"  digests          {found.digests}"
    missing = [name for name in FRAMEWORKS if name not in installed()]
    able = "flax and torch" if found.loads else "nobody"
    yield f"  loads in         {able}{f' (not installed: {missing[0]})' if found.loads and missing else ''}"


def of_weights(weights: "Weights") -> Iterator[str]:
    """One format's lines."""
    total = sum(weights.files.values())
    what = f"{weights.parameters:,} parameters, {weights.tensors} tensors of {', '.join(weights.dtypes)}"
    yield f"  {weights.format:<15}  {weights.problem or what}"
    shown = list(weights.files.items())[:4]
    more = f" and {len(weights.files) - 4} more files" if len(weights.files) > 4 else ""
    yield f"                   {total:,} bytes: {', '.join(f'{name} ({size:,})' for name, size in shown)}{more}"
