"""The command line `ved`: one file a subcommand; frameworks are imported only when used."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from ved_cli import convert, read, train
from ved_core.errors import VedError

EPILOG = """exit status:
  0  all done
  1  done, but some inputs failed; each is named on stderr
  2  nothing done: wrong usage, or a model that cannot be loaded
  75  of train: interrupted, and all is saved
  130  interrupted"""


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="ved",
        description="Image-to-text models: any vision encoder with any text decoder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ved {importlib.metadata.version('ved')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    read.add_parser(commands)
    convert.add_parser(commands)
    train.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Without arguments it is the process's own, in which a command may set up
    frameworks for itself."""
    options = parser().parse_args(arguments, argparse.Namespace(own_process=arguments is None))
    try:
        return options.run(options)
    except BrokenPipeError:
        # The reader of our output has gone; without this, closing stdout at exit would complain once more.
        sys.stdout = None
        return 1
    except (VedError, OSError) as error:
        print(f"ved: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
