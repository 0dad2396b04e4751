"""The benchmarks can be begun, and the servers that they load lose nothing. Nothing here looks at the time."""

import importlib

import pytest

from tests.cases import READER, ROOT

ELSEWHERE = {"onnx.py", "read_transformers.py"}
"""What runs in an environment of its own, and what is no module."""
FILES = [path.relative_to(ROOT) for path in sorted((ROOT / "benchmarks").rglob("*.py")) if path.parent.name != "peer"]


@pytest.mark.parametrize("file", [file for file in FILES if file.name not in ELSEWHERE], ids=str)
def test_what_a_benchmark_needs_is_there(file):
    for name in ("flax", "torch", "transformers"):
        pytest.importorskip(name)
    importlib.import_module(".".join(file.with_suffix("").parts))


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_a_server_under_load_loses_nothing(framework, capsys):
    pytest.importorskip("fastapi")
    pytest.importorskip(framework)
    serving = importlib.import_module("benchmarks.serving")
    assert serving.overload(str(READER), framework, True) == 0
    assert "429" in capsys.readouterr().out
    assert serving.ending(str(READER), framework, True) == 0


@pytest.mark.slow
def test_a_row_is_measured(tmp_path):
    for name in ("flax", "torch", "transformers"):
        pytest.importorskip(name)
    row = importlib.import_module("benchmarks.rows.row")
    bench = importlib.import_module("benchmarks.bench")
    with bench.Bench(tmp_path, rounds=1) as running:
        found = row.compared(running, "tiny", "generate", {"batch": 2, "beams": 2}, [bench.EAGER])
    assert found["best"] == bench.EAGER
    assert {side: figures["value"] > 0 for side, figures in found["ours"].items()} == dict.fromkeys(bench.OURS, True)
