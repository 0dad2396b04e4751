"""`ved train`: training, which `ved_flax.train.command` does."""

import argparse
import importlib
import importlib.util
from typing import Any

from ved_core.errors import VedError


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
    missing = [name for name in ("flax", "orbax.checkpoint", "yaml") if not installed(name)]
    if missing:
        raise VedError(f'training needs {", ".join(missing)}: pip install "ved[train]"')
    return importlib.import_module("ved_flax.train.command").main(options.arguments, "ved train")


def installed(name: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is inside
        return False
