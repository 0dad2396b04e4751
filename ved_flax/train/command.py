"""The command `ved train`, which is `python -m ved_flax.train`."""

import argparse
import json
import logging
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ved_core.errors import TrainingError, VedError
from ved_core.exit_status import Exit
from ved_flax.train import settings
from ved_flax.train.config import TrainConfig

if TYPE_CHECKING:
    from ved_flax.train.loop import Trainer

DONE, FAILED, NOTHING_DONE = Exit.DONE, Exit.SOME_FAILED, Exit.NOTHING_DONE
INTERRUPTED, INTERRUPTED_AT_ONCE = Exit.SAVED, Exit.INTERRUPTED
STATUS = """exit status:
  0    the run has come to its end, and the model is exported; or the step is compiled, and fits
  1    the run has failed; the last good checkpoint is named
  2    nothing was done: wrong usage, or something that cannot be loaded
  75   interrupted by SIGTERM or SIGINT, and all is saved: the same command goes on
  130  interrupted by a second SIGINT: the run goes on from its latest checkpoint"""


class Help(argparse.Action):
    """--help: the usage, and every setting."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.format_help() + "\nsettings:\n" + "\n".join(setting_lines()))
        parser.exit()


def setting_lines() -> Iterator[str]:
    """Every setting with its type, default and text."""
    for setting in settings.describe(TrainConfig):
        yield f"  {setting.name} ({setting.type}; default: {setting.default or 'empty'})"
        yield textwrap.fill(setting.text, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)


def make_parser(program: str) -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train an image-to-text model. The same command again goes on with a run that was interrupted.",
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=Help, nargs=0, help="show this, and every setting")
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="settings of the run")
    parser.add_argument(
        "--compile-only",
        action="store_true",
        help="train nothing: compile the step for a TPU and say what it costs there",
    )
    parser.add_argument(
        "--topology", metavar="NAME", help="the TPU to compile for, as v5e:1x1 or v5e:2x4; needs libtpu"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that replace those of the file")
    return parser


def main(arguments: Sequence[str] | None = None, program: str = "python -m ved_flax.train") -> int:
    """Run the command; returns its exit status."""
    parser = make_parser(program)
    options = parser.parse_intermixed_args(arguments)
    if options.compile_only != (options.topology is not None):
        parser.error("--compile-only and --topology NAME go together")
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("ved").setLevel(logging.INFO)
    failure = NOTHING_DONE
    trainer: Trainer | None = None
    try:
        config = settings.read(TrainConfig, options.config, options.settings)
        if options.compile_only:
            return compile_only(config, options.topology, options.json)
        from ved_flax.train.run import prepared  # brings grain and orbax along: the settings are checked before

        with prepared(config) as trainer:
            failure = FAILED
            outcome = trainer.fit()
            if options.json:
                print(json.dumps({"outcome": outcome, "step": trainer.step, "output": str(config.output)}))
            return DONE if outcome == "done" else INTERRUPTED
    except (VedError, OSError) as error:
        if options.debug:
            traceback.print_exception(error)
        # A TrainingError names it by itself.
        last = "" if trainer is None or isinstance(error, TrainingError) else f"; {trainer.checkpoints.last_good()}"
        print(f"ved: {error}{last}", file=sys.stderr)
        return failure
    except KeyboardInterrupt:
        return INTERRUPTED_AT_ONCE


def compile_only(config: TrainConfig, name: str, as_json: bool) -> int:
    """Print what the step costs on a TPU; returns the exit status. Raises VedError."""
    from ved_flax.aot.topology import topology
    from ved_flax.train.ahead import compile_step

    ahead = compile_step(config, topology(name))
    print(json.dumps(ahead.to_dict()) if as_json else "\n".join(ahead.lines()))
    return DONE if ahead.report.fits else FAILED
