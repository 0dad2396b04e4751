"""The command line, as a user calls it."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import ved_cli
from tests import hub_server
from tests.cases import DIGITS, READER, ROOT
from ved_cli.readings import Readings

pytest.importorskip("flax")
SAMPLES = json.loads((DIGITS / "expected.json").read_text())["samples"]
TEXTS = [sample["greedy_text"] for sample in SAMPLES]


def columns(line):
    """Image, confidence and text of a line."""
    return re.split(r"  +", line)


@pytest.fixture
def ved(capsys):
    """Call `ved` in this process: (exit status, stdout lines, stderr)."""

    def call(*arguments):
        if "read" in arguments[:1] and "--model" not in arguments:
            arguments += ("--model", READER)
        try:
            status = ved_cli.main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return call


def test_reads_the_examples_as_expected(ved):
    status, lines, err = ved("read", *sorted(DIGITS.glob("*.png")))
    assert (status, err) == (0, "")
    assert [columns(line)[2] for line in lines] == TEXTS
    assert all(0 < float(columns(line)[1]) <= 1 for line in lines)


@pytest.mark.parametrize("source", [DIGITS, DIGITS / "*.png", DIGITS / "**" / "[01][0-9].png"], ids=str)
def test_folders_and_patterns(ved, source):
    status, lines, _ = ved("read", source, "--json", "--batch-size", 5)
    entries = [json.loads(line) for line in lines]
    assert status == 0
    assert [entry["text"] for entry in entries] == TEXTS
    assert [entry["image"] for entry in entries] == sorted(str(path) for path in DIGITS.glob("*.png"))


def test_bad_images_are_reported_and_the_rest_is_read(ved, tmp_path):
    (tmp_path / "broken.png").write_bytes((DIGITS / "00.png").read_bytes()[:200])
    names = [
        DIGITS / "00.png",
        tmp_path / "broken.png",
        tmp_path / "none.png",
        tmp_path / "*.gif",
        DIGITS / "01.png",
    ]
    status, lines, err = ved("read", *names)
    assert status == 1
    assert [columns(line)[2] for line in lines] == TEXTS[:2]
    for name in names[1:4]:
        assert str(name) in err
    assert "3 of 5 images could not be read" in err
    status, lines, _ = ved("read", "--json", *names)
    entries = [json.loads(line) for line in lines]
    assert status == 1
    assert ["error" in entry for entry in entries] == [False, True, True, True, False]


def test_readings_in_a_file_go_on_where_they_were_interrupted(ved, tmp_path, monkeypatch):
    """Every image once, whatever way it is named, and a line that was half written is written again."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [*sorted(DIGITS.glob("*.png")), tmp_path / "broken.png"]
    (tmp_path / "list.txt").write_text("".join(f"{image}\n" for image in [*images, images[0]]))
    output = tmp_path / "out.jsonl"
    arguments = ["read", f"@{tmp_path / 'list.txt'}", "--output", output, "--batch-size", 4]
    add = Readings.add

    def interrupted(self, entry):
        if len(self.names) == 6:
            raise KeyboardInterrupt
        add(self, entry)

    monkeypatch.setattr(Readings, "add", interrupted)
    status, lines, err = ved(*arguments)
    assert (status, lines) == (130, [])
    assert "6 images" in err
    assert "--resume" in err
    monkeypatch.undo()
    assert ved(*arguments)[0] == 2  # it is there, and --resume was not said
    assert len(output.read_text().splitlines()) == 6
    with output.open("a") as file:
        file.write('{"image": "half')
    status, lines, err = ved(*arguments, "--resume")
    assert (status, lines) == (1, [])
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert [entry["image"] for entry in entries] == [str(image) for image in images]
    assert [entry["text"] for entry in entries[:-1]] == TEXTS
    assert "not in a format" in entries[-1]["error"]
    written = output.read_bytes()
    assert ved("read", DIGITS, *arguments[1:], "--resume")[0] == 1  # there is nothing to do
    assert output.read_bytes() == written


def test_a_list_from_stdin(ved, tmp_path, monkeypatch):
    names = tmp_path / "names"
    names.write_bytes(f"{DIGITS / '00.png'}\r\n\n{DIGITS / '01.png'}".encode() + b"\n\xff.png\n")
    with names.open("rb") as file:
        before = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            status, _, err = ved("read", "@-", "--output", tmp_path / "out.jsonl")
        finally:
            os.dup2(before, 0)
            os.close(before)
    entries = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert status == 1
    assert [entry.get("text") for entry in entries] == [*TEXTS[:2], None]
    assert entries[2]["image"] == "\udcff.png"
    assert "no such file" in err


def test_files_that_are_no_readings(ved, tmp_path):
    output = tmp_path / "out.jsonl"
    for content, message in (
        ('{"image": "a.png", "text": "x"}\nnonsense\n', "line 2 is no reading"),
        ("[1]\n", "line 1 is no reading"),
    ):
        output.write_text(content)
        status, _, err = ved("read", DIGITS / "00.png", "--output", output, "--resume")
        assert status == 2
        assert message in err
        assert output.read_text() == content
    with Readings(tmp_path / "busy.jsonl", False):
        status, _, err = ved("read", DIGITS / "00.png", "--output", tmp_path / "busy.jsonl", "--resume")
    assert status == 2
    assert "another command writes to it" in err
    status, _, err = ved("read", DIGITS / "00.png", "--output", tmp_path / "new.jsonl", "--max-new-tokens", 99)
    assert status == 2
    assert not (tmp_path / "new.jsonl").exists()


def test_a_full_disk_leaves_whole_lines(ved, tmp_path):
    resource = pytest.importorskip("resource")
    output = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        status, _, err = ved("read", DIGITS, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert str(output) in err
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == TEXTS[:1]


def test_both_frameworks_read_the_same(ved):
    pytest.importorskip("torch")
    here, there = (ved("read", DIGITS, "--json", "--framework", name)[1] for name in ("flax", "torch"))
    for ours, theirs in zip(map(json.loads, here), map(json.loads, there), strict=True):
        assert (ours["image"], ours["text"]) == (theirs["image"], theirs["text"])
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-4)


def test_a_framework_that_is_not_installed(ved, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = ved("read", DIGITS / "00.png", "--framework", "torch")
    assert status == 2
    assert 'pip install "ved[torch]"' in err


@pytest.mark.slow
def test_a_model_by_name_and_then_offline(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "ved_cli", "read", str(DIGITS / "00.png"), "--model", "someone/reader", "--json"]

    def read(**variables):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment | variables
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["text"]

    with hub_server.serve({"someone/reader": READER}) as hub:
        assert read(HF_ENDPOINT=hub.endpoint) == TEXTS[0]
    assert read(HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1") == TEXTS[0]


def test_an_empty_folder_is_an_error(ved, tmp_path):
    status, lines, err = ved("read", tmp_path)
    assert (status, lines) == (1, [])
    assert f"folder '{tmp_path}': has no images" in err
    status, lines, err = ved("read", tmp_path, "--stream")
    assert (status, lines) == (1, [])
    assert f"folder '{tmp_path}': has no images" in err


@pytest.mark.parametrize("images", [1, 12])
def test_many_images_have_a_progress_bar_on_a_terminal(ved, monkeypatch, images):
    names = sorted(DIGITS.glob("*.png"))[:images]
    assert ved("read", *names)[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    status, lines, err = ved("read", *names)
    assert status == 0
    assert [columns(line)[2] for line in lines] == TEXTS[:images]
    assert ("/12 [" in err) == (images > 8)


def test_options_reach_decoding(ved):
    assert ved("read", DIGITS / "01.png", "--max-new-tokens", 2)[1][0].endswith("five four")
    status, _, err = ved("read", DIGITS / "01.png", "--max-new-tokens", 99)
    assert status == 2
    assert "32 positions" in err
    assert err.count("\n") == 1


def test_beams_and_alternatives(ved):
    arguments = ["read", DIGITS / "00.png", DIGITS / "01.png", "--num-beams", 4, "--num-return-sequences", 2]
    status, lines, err = ved(*arguments)
    assert (status, err) == (0, "")
    assert [columns(line)[-1] for line in lines[::2]] == TEXTS[:2]
    assert [line[0] for line in lines] == [str(DIGITS)[0], " "] * 2
    entries = [json.loads(line) for line in ved(*arguments, "--json")[1]]
    assert [entry["alternatives"][0]["text"] for entry in entries] == [columns(line)[-1] for line in lines[1::2]]


def test_sampling_has_a_seed(ved):
    arguments = ["read", *sorted(DIGITS.glob("*.png")), "--do-sample", "--temperature", 4, "--top-k", 0]
    draws = [[columns(line)[-1] for line in ved(*arguments, "--seed", seed)[1]] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_a_stream_is_the_text(ved, framework, tmp_path):
    pytest.importorskip(framework)
    images = [DIGITS / "00.png", tmp_path / "none.png", DIGITS / "02.png"]
    status, lines, err = ved("read", *images, "--stream", "--framework", framework)
    assert status == 1
    assert [columns(line)[1] for line in lines] == [TEXTS[0], TEXTS[2]]
    assert "none.png" in err


def test_values_are_json_or_text(ved):
    assert ved("read", DIGITS / "00.png", "--stop-strings", "th")[1][0].endswith("  three")
    line = ved("read", DIGITS / "00.png", "--bad-words-ids", "[[25]]", "--no-do-sample", "--prompt", "two")[1][0]
    assert columns(line)[2].startswith("two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["read", str(DIGITS / "00.png"), "--num-beams", "many"], "num_beams = 'many'"),
        (["read", str(DIGITS / "00.png"), "--stream", "--num-beams", "2"], "num_beams=1"),
        (["read", str(DIGITS / "00.png"), "--stream", "--json"], "leave --json out"),
        (["read", str(DIGITS / "00.png"), "--stream", "--output", "x"], "leave --output out"),
        (["read", str(DIGITS / "00.png"), "--resume"], "name it with --output"),
        (["read", "@nowhere.txt"], "list 'nowhere.txt': no such file"),
        (["read", "x.png", "--model", "./nowhere"], "./nowhere"),
        (["read", "x.png", "--batch-size", "0"], "at least 1"),
        (["read"], "IMAGE"),
        (["rede"], "rede"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_ends_with_2(ved, arguments, message):
    status, lines, err = ved(*arguments)
    assert (status, lines) == (2, [])
    assert message in err
    assert "Traceback" not in err


def test_a_damaged_model_is_one_line(ved, tmp_path):
    folder = shutil.copytree(READER, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    status, lines, err = ved("read", DIGITS / "00.png", "--model", folder)
    assert (status, lines, err.count("\n")) == (2, [], 1)
    assert str(weights) in err


@pytest.mark.parametrize("arguments", [["--help"], ["read", "--help"], ["--version"]])
def test_help(ved, arguments):
    status, lines, err = ved(*arguments)
    assert (status, err) == (0, "")
    assert lines


def test_what_is_loaded_is_not_looked_through_for_garbage():
    program = f"""
import argparse, gc
from ved_cli import parser, read
collected = []
gc.callbacks.append(lambda phase, about: collected.append(about["generation"]))
own = argparse.Namespace(own_process=True)
read.loaded(parser().parse_args(["read", "image.png", "--model", {str(READER)!r}], own))
print(collected.count(2), gc.isenabled(), gc.get_freeze_count() > 10_000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["0", "True", "True"]


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m ved_cli read {DIGITS}/*.png --model {READER} --batch-size 1 | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().endswith(TEXTS[0])
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
