"""`ved convert`: a checkpoint in any format to any format; what is in one; whether two compute the same."""

import argparse
from typing import Any

from conversion import command

OTHERS = (
    *("to", "dtype", "shard_size", "part", "encoder", "decoder", "list"),
    *("wanted", "config", "revision", "subfolder", "no_check_digests"),
)
"""Options that --verify has no use for."""


def add_parser(commands: Any) -> None:
    """Add `convert` to the subcommands."""
    parser = commands.add_parser(
        "convert",
        help="convert checkpoints between formats",
        description=command.DESCRIPTION,
        epilog=command.EPILOG.format(prog="ved convert")
        + "\n  ved convert --verify SOURCE TARGET           whether both compute the same",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--verify", action="store_true", help="run SOURCE and TARGET on a random image and compare, layer by layer"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert, list or compare; the exit status is 1 where two checkpoints differ."""
    if not options.verify:
        return command.run(options)
    from ved_cli.comparing import verify

    source, target = command.places(options, 2, "--verify takes SOURCE and TARGET")
    command.refuse(options, "--verify", OTHERS)
    return verify(source, target, as_json=options.json)
