"""What all commands have in common: help, exit statuses, errors in one line, JSON, completion."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import ved_cli
from tests import exit_table
from tests.cases import DIGITS, READER, ROOT
from ved_cli import completion
from ved_core.errors import VedError
from ved_core.exit_status import MEANING, Exit

IMAGE = str(DIGITS / "00.png")


@pytest.fixture
def ved(capsys):
    """Call `ved` in this process: (exit status, stdout, stderr)."""

    def call(*arguments):
        try:
            status = ved_cli.main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


class FullDisk(io.StringIO):
    """A stdout that takes lines and cannot write them."""

    def flush(self):
        raise OSError(28, "No space left on device")


def commands():
    """Subcommands by name."""
    (action,) = (a for a in ved_cli.parser()._actions if a.dest == "command")
    return action.choices


def test_every_file_with_a_command_is_one():
    files = {path.stem for path in (ROOT / "ved_cli").glob("*.py") if "\ndef add_parser(" in path.read_text()}
    assert files == set(ved_cli.COMMANDS)
    assert list(commands()) == [name.replace("evaluate", "eval") for name in ved_cli.COMMANDS]


def test_help_names_every_command_and_exit_status(ved):
    status, out, err = ved("--help")
    assert (status, err) == (0, "")
    for name in commands():
        assert re.search(rf"^    {name}\b", out, flags=re.MULTILINE)
    for meaning in Exit:
        assert re.search(rf"^  {meaning.value}\b", out, flags=re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("name", [name for name in commands() if name != "train"])
def test_each_command_explains_itself(ved, name):
    status, out, err = ved(name, "--help")
    assert (status, err) == (0, "")
    assert "--debug" in out
    assert all(action.help for action in commands()[name]._actions)


def test_the_table_has_every_status():
    assert MEANING.keys() == set(Exit)
    assert exit_table.table().count("\n") == len(Exit) + 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (VedError("the file\nis bad; copy it again"), Exit.NOTHING_DONE, r"ved: the file\nis bad; copy it again"),
        (OSError(28, "No space left on device"), Exit.NOTHING_DONE, "No space left"),
        (
            ZeroDivisionError("by zero"),
            Exit.INTERNAL,
            "internal error, ZeroDivisionError: by zero; --debug shows where",
        ),
        (KeyboardInterrupt(), Exit.INTERRUPTED, ""),
        (BrokenPipeError(), Exit.SOME_FAILED, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_one_line_and_debug_shows_more(ved, monkeypatch, error, status, message, debug):
    def fail(options):
        raise error

    monkeypatch.setattr("ved_cli.read.run", fail)
    # sys.stdout is given up for a broken pipe.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    found, _, err = ved(*["--debug"] * debug, "read", IMAGE)
    assert found == status
    assert (message in err) if not debug else ("Traceback" in err) == bool(message)
    if not debug:
        assert err.count("\n") == bool(message)
    assert ved("read", IMAGE, "--debug")[2].count("Traceback") == bool(message)


def test_reading_ends_the_process_when_all_is_written(ved, monkeypatch, tmp_path):
    """Python and the frameworks are not taken apart; a full disk behind stdout is still said."""

    def ended(status):
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", ended)
    monkeypatch.setattr("ved_cli.read.run", lambda options: print("a line", flush=False) or 1)
    monkeypatch.setattr(sys, "argv", ["ved", "read", IMAGE])
    written = tmp_path / "out"
    with written.open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit, match="1"):
            ved_cli.main()
        assert written.read_text() == "a line\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(SystemExit, match="1"):
            ved_cli.main()
    assert ved_cli.main(["read", IMAGE]) == 1, "called from Python, it returns"
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert ved_cli.main() == Exit.NOTHING_DONE


def test_a_package_that_is_missing_says_what_to_install(ved, monkeypatch):
    parsers = commands()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("gradio", "fastapi") else name)
    for name, extra in (("serve", "serve"), ("demo", "demo-page")):
        command = parsers[name]
        with pytest.raises(VedError, match=rf'pip install "ved\[{extra}\]"'):
            command.get_default("run")(command.parse_args([]))


def test_a_port_that_is_taken_is_one_line(ved):
    import socket

    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, out, err = ved("serve", "--port", taken.getsockname()[1])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "give another --port" in err
    assert "give another --port" in ved("serve", "--port", 99999)[2]


def test_json_of_conversion(ved, tmp_path):
    status, out, _ = ved("convert", READER, tmp_path / "flax", "--to", "flax", "--json")
    assert (status, json.loads(out)) == (0, {"target": str(tmp_path / "flax")})
    listing = json.loads(ved("convert", "--list", tmp_path / "flax", "--json")[1])
    assert (listing["format"], listing["missing"]) == ("flax", [])
    assert sum(tensor["bytes"] for tensor in listing["tensors"]) == listing["bytes"] > 0
    assert {"name", "dtype", "shape", "bytes", "role", "row"} == listing["tensors"][0].keys()


@pytest.mark.slow
def test_json_of_verification(ved, tmp_path):
    pytest.importorskip("torch")
    from safetensors.numpy import load_file, save_file

    status, out, _ = ved("verify", READER, READER, "--json")
    found = json.loads(out)
    assert (status, found["same"], found["departs_first"]) == (0, True, None)
    assert ved("verify", READER, READER)[1].endswith("the same within 0.0001\n")
    other = shutil.copytree(READER, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.startswith("decoder") and name.endswith("weight"))
    save_file(weights | {name: weights[name] + 1}, other / "model.safetensors", {"format": "pt"})
    status, out, _ = ved("verify", READER, other, "--json")
    found = json.loads(out)
    assert (status, found["same"]) == (1, False)
    assert found["departs_first"].startswith("decoder")
    assert [layer["layer"] for layer in found["layers"]][-1] == "logits"
    assert ved("convert", "--verify", READER, other, "--json")[:2] == (1, out)


@pytest.mark.parametrize(("outcome", "status"), [("done", Exit.DONE), ("interrupted", Exit.SAVED)])
def test_json_of_training(ved, monkeypatch, tmp_path, outcome, status):
    pytest.importorskip("orbax.checkpoint")
    trainer = SimpleNamespace(fit=lambda: outcome, step=3)
    prepared = SimpleNamespace(prepared=lambda config: contextlib.nullcontext(trainer))
    monkeypatch.setitem(sys.modules, "ved_flax.train.run", prepared)
    (tmp_path / "run.yaml").write_text(f"output: {tmp_path / 'run'}\n")
    found, out, _ = ved("train", "--json", "--config", tmp_path / "run.yaml", "data.source=lines")
    assert (found, json.loads(out)) == (status, {"outcome": outcome, "step": 3, "output": str(tmp_path / "run")})


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion(ved, shell, tmp_path):
    status, script, err = ved("completion", shell)
    assert (status, err) == (0, "")
    assert "read" in script
    assert "num-beams" in script
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    (tmp_path / "script").write_text(script)
    ask = {
        "bash": "source ./script; COMP_WORDS=(ved read --num-b); COMP_CWORD=2; _shtab_ved ved --num-b read; "
        'echo "${COMPREPLY[@]}"',
        "fish": "source ./script; complete -C 'ved read --num-b'",
        "zsh": "autoload -Uz compinit; compinit -u -D; source ./script 2>/dev/null; functions _shtab_ved_read_options; "
        "print -r -- $_shtab_ved_read_options",
        "tcsh": "source ./script; complete ved",
    }
    command = [shell, "-f", "-c", ask[shell]] if shell in ("tcsh", "zsh") else [shell, "-c", ask[shell]]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)}, check=False
    )
    assert "num-beams" in done.stdout, done
