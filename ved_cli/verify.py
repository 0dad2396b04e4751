"""`ved verify`: whether two checkpoints compute the same."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add `verify` to the subcommands."""
    parser = commands.add_parser(
        "verify",
        help="compare what two checkpoints compute",
        description="Run two checkpoints on the same random image and text and compare every layer, each computed by "
        "the framework whose format it is. The exit status is 1 where they differ by more than rounding.",
    )
    parser.add_argument("source", metavar="SOURCE", help="checkpoint folder or hub name")
    parser.add_argument("target", metavar="TARGET", help="checkpoint folder or hub name")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare; the exit status is 1 where the two differ."""
    from ved_cli.comparing import verify

    return verify(options.source, options.target, as_json=options.json)
