"""`ved completion`: what makes a shell complete ved's commands and options."""

import argparse
from collections.abc import Iterator
from typing import Any

FILES = frozenset(
    {"arguments", "config", "decoder", "encoder", "images", "model", "output", "place", "places", "source", "target"}
)
"""Arguments, of whatever command, that name a file or a folder."""
SHELLS = ("bash", "zsh", "fish", "tcsh")
EPILOG = """once for all shells to come:
  bash   ved completion bash > ~/.local/share/bash-completion/completions/ved
  zsh    ved completion zsh > ~/.zfunc/_ved      with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  fish   ved completion fish > ~/.config/fish/completions/ved.fish
  tcsh   ved completion tcsh > ~/.ved.tcsh       with `source ~/.ved.tcsh` in ~/.tcshrc"""


def add_parser(commands: Any) -> None:
    """Add `completion` to the subcommands."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands in a shell",
        description="Print a script that makes a shell complete ved's commands, options and file names.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that you use")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script; the exit status is 0."""
    import shtab

    import ved_cli

    parser = ved_cli.parser()
    for action in actions(parser):
        if action.dest in FILES and action.choices is None:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
