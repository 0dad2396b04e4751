"""Whole runs in processes of their own: killed, interrupted, several at once."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("flax")
pytest.importorskip("orbax.checkpoint")
from conversion.formats import safetensors
from tests import train_worker
from tests.cases import READER, ROOT, model_config
from tests.training import DRY, SMALL, WET, train
from ved_flax import FlaxVisionEncoderDecoderModel, state
from ved_flax.train import command, run
from ved_flax.train.building import build_model, merged
from ved_flax.train.command import DONE, FAILED, INTERRUPTED, NOTHING_DONE
from ved_flax.train.config import ModelConfig, OptimizerConfig

STEPS = 14
PATIENCE = "--xla_cpu_collective_timeout_seconds=240 --xla_cpu_collective_call_terminate_timeout_seconds=240"
"""Of processes with each other, where a busy machine starts one much later: less than `finish` has with them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where runs keep their compiled programs, and the config that they share."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "config.json").write_text(json.dumps(merged(model_config(*SMALL), WET)))
    values = {
        "steps": STEPS,
        "model": {"config": str(folder / "config.json"), "processor": str(READER)},
        "optimizer": {"learning_rate": 1e-3},
        "average": {"decay": 0.9},
        "parallel": {"data": 1},
        "checkpoint": {"every": 3},
        "logging": {"sample_ids": True, "compilation_cache": str(folder / "cache")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder


def start(folder, name, *settings, seconds=0.0, devices=1, damage=None):
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices} {PATIENCE}"
    flags = f"{os.environ['XLA_FLAGS']} {flags}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    environment |= {"DAMAGED_VIEW": damage or ""}
    command = [sys.executable, "-m", "tests.train_worker", str(seconds), "--config", folder / "run.yaml"]
    command += [f"output={folder / name}", *settings]
    # A file: a pipe fills up where it is not read, as a second process's while the first one is waited for.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".log", delete=False) as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors)
    process.errors = Path(errors.name)
    return process


def finish(process, status=DONE):
    try:
        process.wait(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors = process.errors.read_text(errors="replace")
    assert process.returncode == status, errors
    return errors


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []


def wait_for(process, file, step):
    """Until a run has come so far, or has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= step for line in lines(file)):
            return
        time.sleep(0.01)


def outcome(folder, name):
    """All that must be the same however a run was interrupted: metrics, samples, parameters."""
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / name / "metrics.jsonl")]
    tensors = safetensors.read(folder / name / "model" / "model.safetensors")
    return metrics, lines(folder / name / "samples.jsonl"), {k: v.tobytes() for k, v in tensors.items()}


def same(folder, name, expected):
    found = outcome(folder, name)
    assert [line["step"] for line in found[0]] == list(range(1, STEPS + 1))
    assert found == expected


@pytest.fixture(scope="module")
def uninterrupted(folder):
    finish(start(folder, "whole"))
    return outcome(folder, "whole")


def test_a_run_goes_on_after_sigterm_and_after_being_killed(folder, uninterrupted):
    metrics = folder / "stopped" / "metrics.jsonl"
    process = start(folder, "stopped", seconds=0.1)
    wait_for(process, metrics, 5)
    process.send_signal(signal.SIGTERM)
    errors = finish(process, INTERRUPTED)
    last = lines(metrics)[-1]["step"]
    assert f"all is saved behind step {last}" in errors
    assert (folder / "stopped" / "checkpoints" / str(last)).is_dir()
    assert not (folder / "stopped" / "model").exists()
    process = start(folder, "stopped", seconds=0.1)
    wait_for(process, metrics, last + 2)
    process.kill()
    process.wait()
    assert lines(metrics)[last]["step"] == last + 1  # nothing was repeated, and nothing left out
    finish(start(folder, "stopped"))
    same(folder, "stopped", uninterrupted)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_is_the_same(folder, uninterrupted):
    chance = random.Random(0)
    name, kills = "killed", 0
    metrics = folder / name / "metrics.jsonl"
    while kills < 20:
        process = start(folder, name, seconds=0.15)
        if chance.random() < 0.3:  # while it starts, loads or compiles
            time.sleep(chance.uniform(0.5, 6))
        else:
            came = max((line["step"] for line in lines(metrics)), default=0)
            wait_for(process, metrics, came + chance.randint(0, 3))
            time.sleep(chance.uniform(0, 0.4))
        if process.poll() is not None:  # it came to its end: begin again
            assert process.returncode == DONE
            same(folder, name, uninterrupted)
            name = f"killed-{kills}"
            metrics = folder / name / "metrics.jsonl"
            process.wait()
            continue
        process.kill()
        process.wait()
        kills += 1
    finish(start(folder, name))
    same(folder, name, uninterrupted)


def start_two(folder, name, *settings, seconds=0.0, damage=None):
    """Two processes of four devices, of which the second may see a damaged checkpoint: see `tests.train_worker`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [f"parallel={{coordinator: '127.0.0.1:{port}', processes: 2}}", *settings]
    return [
        start(folder, name, *settings, f"parallel.process={i}", seconds=seconds, devices=4, damage=seen)
        for i, seen in enumerate((None, damage))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "model": 4}, {"mode": "pmap"}], ids=str)
def test_two_processes_of_four_devices_are_as_one_device(folder, axes):
    name, config = "two-" + "-".join(axes), folder / "dry.json"
    config.write_text(json.dumps(merged(model_config(*SMALL), DRY)))
    settings = ["optimizer={name: sgd, learning_rate: 0.05, arguments: {momentum: 0.9}, clip_norm: null}"]
    settings += [f"model.config={config}", "average.decay=null", "steps=20"]
    for process in start_two(folder, name, *settings, *(f"parallel.{axis}={size}" for axis, size in axes.items())):
        finish(process)
    sgd = OptimizerConfig(name="sgd", learning_rate=0.05, arguments={"momentum": 0.9}, clip_norm=None)
    expected = train(build_model(ModelConfig(config=str(config)), seed=0), 20, optimizer=sgd)
    losses = [line["loss"] for line in lines(folder / name / "metrics.jsonl")]
    np.testing.assert_allclose(losses, expected.losses, atol=1e-5)
    found = state.arrays(FlaxVisionEncoderDecoderModel.from_pretrained(folder / name / "model"))
    for parameter, value in expected.params.items():
        np.testing.assert_allclose(found[parameter], value, atol=1e-5, err_msg=parameter)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_go_on(folder):
    finished = start_two(folder, "two-whole", "parallel.fsdp=8")
    for process in finished:
        finish(process)
    processes = start_two(folder, "two-stopped", "parallel.fsdp=8", seconds=0.3)
    wait_for(processes[0], folder / "two-stopped" / "metrics.jsonl", 4)
    processes[1].send_signal(signal.SIGTERM)
    steps = {
        re.search(r"all is saved behind step (\d+)", finish(process, INTERRUPTED)).group(1) for process in processes
    }
    assert len(steps) == 1
    request = folder / "two-stopped" / "export"
    request.touch()
    for process in start_two(folder, "two-stopped", "parallel.fsdp=8"):
        finish(process)
    assert not request.exists()
    (exported,) = (folder / "two-stopped" / "exports").iterdir()
    assert int(exported.name) > int(steps.pop())
    FlaxVisionEncoderDecoderModel.from_pretrained(exported)
    for file in ("metrics.jsonl", "samples.0.jsonl", "samples.1.jsonl"):
        whole, stopped = (
            [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / name / file)]
            for name in ("two-whole", "two-stopped")
        )
        assert whole == stopped
        assert len(whole) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "damage"), [("fsdp", "file"), ("data", "arrays"), ("data", "description"), ("data", "missing")]
)
def test_two_processes_go_back_together_where_one_sees_damage(folder, axis, damage):
    whole = f"two-six-{axis}"
    if not (folder / whole / "model").exists():
        for process in start_two(folder, whole, f"parallel.{axis}=8", "steps=6"):
            finish(process)
    name = f"{whole}-{damage}"
    shutil.copytree(folder / whole, folder / name)
    newest = folder / name / "checkpoints" / "6" / "state"
    if damage == "file":  # what the second process has written, and reads; not all of its bytes are used
        for file in (newest / "ocdbt.process_1" / "d").iterdir():
            data = bytearray(file.read_bytes())
            data[::1000] = bytes(byte ^ 4 for byte in data[::1000])
            file.write_bytes(data)
    view = None if damage == "file" else damage
    processes = start_two(folder, name, f"parallel.{axis}=8", "steps=6", damage=view)
    errors = [finish(process) for process in processes]
    for text in errors:
        assert re.search(r"checkpoints/6: .*: damaged, and left aside", text)
        assert "going on behind step 3" in text
    assert [path.name for path in (folder / name / "checkpoints-damaged").iterdir()] == ["6.0"]
    assert not {6, 3} - {int(path.name) for path in (folder / name / "checkpoints").iterdir()}
    found, expected = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / run / "metrics.jsonl")]
        for run in (name, whole)
    )
    assert [line["step"] for line in found] == list(range(1, 7))
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimiser.name=sgd"], "no setting optimiser: did you mean optimizer?"),
        (["parallel.fsdp=3", "parallel.data=-1"], "fsdp * model should divide the 8 devices"),
        (["batch_size=10", "parallel.data=4"], "batch_size = 10 should be a multiple of 4"),
        (["model.config=null"], "give one of model.pretrained"),
        (["evaluation.metric=cer"], "set evaluation.every too"),
        (["evaluation={every: 1, metric: wer}"], "evaluation.metric = 'wer' should be one of evaluation.metrics"),
        (["evaluation.at_start=true"], "data.evaluation_source is not: name the samples"),
        (["evaluation.options={beams: 2}"], "generate() has no option 'beams'; did you mean num_beams?"),
        (["model.overrides={encoder: {hidden_size_x: 3}}"], "model.overrides.encoder.hidden_size_x: ViTConfig has no"),
    ],
)
def test_what_cannot_be_trained_is_refused(folder, settings, message, capsys):
    arguments = ["--config", str(folder / "run.yaml"), f"output={folder / 'refused'}", *settings]
    assert command.main(arguments) == NOTHING_DONE
    assert message in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_a_run_that_cannot_write_its_model_fails_and_names_its_checkpoint(folder, capsys, monkeypatch):
    output = folder / "in-the-way"
    output.mkdir()
    (output / "model").touch()
    monkeypatch.setattr(run, "training_batches", train_worker.batches)
    arguments = ["--config", str(folder / "run.yaml"), f"output={output}", "steps=1", "logging.compilation_cache=null"]
    assert command.main(arguments) == FAILED
    errors = capsys.readouterr().err
    assert f"'{output / 'model'}'; the last good checkpoint is {output / 'checkpoints' / '1'}" in errors
