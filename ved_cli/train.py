"""`ved train`: training, which `ved_flax.train.command` does."""

import argparse
import importlib
from typing import Any

from ved_cli.needs import needed


def add_parser(commands: Any) -> None:
    """Add `train` to the subcommands. What follows it is given on as it is: the settings bring JAX along, which no
    other command should wait for."""
    parser = commands.add_parser(
        "train", help="train a model", add_help=False, prefix_chars="\0", usage=argparse.SUPPRESS
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train. Raises VedError where the packages for it are missing."""
    needed(("flax", "orbax.checkpoint", "yaml"), "train")
    arguments = ["--debug", *options.arguments] if options.debug else options.arguments
    return importlib.import_module("ved_flax.train.command").main(arguments, "ved train")
