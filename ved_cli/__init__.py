"""The command line `ved`: one file a subcommand; frameworks are imported only when used."""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import pkgutil
import sys
import textwrap
import traceback
from collections.abc import Sequence

from ved_core.errors import VedError
from ved_core.exit_status import MEANING, Exit

COMMANDS = ("read", "convert", "verify", "train", "evaluate", "info", "export", "serve", "demo", "completion")
"""The files of subcommands, each with `add_parser` and `run`, in the order of the help."""
EXAMPLES = """examples:
  ved read page.png scans/ "photos/*.jpg"      text out of images
  ved read page.png --model NAME --json        with a checkpoint from the Hugging Face hub
  ved convert SOURCE TARGET --to flax          weights from any format to any format
  ved serve --model NAME                       the same over HTTP
  ved demo                                     a page to try it

`ved COMMAND --help` says more. With --debug, errors come with their traceback."""
DEBUG = "show tracebacks of errors"


def epilog() -> str:
    """Examples, and every exit status."""
    lines = [EXAMPLES, "", "exit status:"]
    for status, meaning in MEANING.items():
        lines.append(textwrap.fill(meaning, 112, initial_indent=f"  {status:<4} ", subsequent_indent=" " * 7))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="ved",
        usage="ved [--help] [--version] [--debug] COMMAND ...",
        description="Image-to-text models in Flax and PyTorch: any vision encoder with any text decoder.",
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ved {importlib.metadata.version('ved')}")
    top.add_argument("--debug", action="store_true", help=DEBUG)
    commands = top.add_subparsers(dest="command", required=True, title="commands", metavar="COMMAND")
    files = {module.name for module in pkgutil.iter_modules(__path__)}
    for name in COMMANDS:
        if name in files:
            importlib.import_module(f"{__name__}.{name}").add_parser(commands)
    for command in commands.choices.values():
        if command.prefix_chars == "-":  # train's arguments are all train's own
            command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. An error is one line on stderr. Without arguments the process is the
    command's own, which may set up frameworks for itself."""
    own = argparse.Namespace(own_process=arguments is None, leaves_at_once=False)
    options = parser().parse_args(arguments, own)
    try:
        status = int(options.run(options))
        if options.own_process and options.leaves_at_once:
            leave(status)
        return status
    except BrokenPipeError:
        # The reader of our output has gone; without this, closing stdout at exit would complain once more.
        sys.stdout = None
        return Exit.SOME_FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except (VedError, OSError) as error:
        return complain(error, options.debug, Exit.NOTHING_DONE)
    except Exception as error:
        return complain(error, options.debug, Exit.INTERNAL)


def leave(status: int) -> None:
    """End the process without taking Python and the frameworks apart, which takes 0.4 s. Raises OSError where the last
    lines of stdout cannot be written."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # either may have been closed before Python began
        stream.flush()
    os._exit(status)


def complain(error: Exception, debug: bool, status: Exit) -> int:
    """Say what went wrong; returns the exit status."""
    if debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if status is Exit.INTERNAL:
        advice = "" if debug else "; --debug shows where, please report it"
        text = f"internal error, {type(error).__name__}: {text}{advice}"
    with contextlib.suppress(BrokenPipeError):
        print(f"ved: {text}", file=sys.stderr)
    return status
