"""The notebooks run from top to bottom, and what they keep is what they showed."""

import json
import sys
import tomllib

import pytest

pytest.importorskip("nbclient")
from tests.cases import DIGITS, READER, ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
import run

STAND_INS = {name: str(READER) for name in ("TROCR", "CAPTIONER", "DONUT")}
IMAGES = {"PHOTO": str(DIGITS / "00.png"), "RECEIPT": str(DIGITS / "01.png")}
PARAMETERS = {
    "1_read_images": {"PUBLISHED": True, **STAND_INS, **IMAGES},
    "2_convert": {"CHECKPOINT": str(READER)},
    "3_train": {"STEPS": 12},
    "4_compiled": {"NEW_TOKENS": 6},
}
"""What is assigned in a notebook's run: small local folders for published checkpoints, and few steps."""


def test_each_is_run():
    assert [path.stem for path in run.NOTEBOOKS] == list(PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("path", run.NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = run.executed(path, tmp_path, PARAMETERS[path.stem])
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", run.NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))  # run once, in order
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not {output["output_type"] for output in outputs} & {"error"}
    assert not {output.get("name") for output in outputs} & {"stderr"}
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", run.NOTEBOOKS, ids=lambda path: path.stem)
def test_it_opens_and_installs_itself_in_colab(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    title, install = json.loads(path.read_text(encoding="utf-8"))["cells"][:2]
    assert f"/github/{repository}/blob/main/notebooks/{path.name})" in "".join(title["source"])
    (wanted,) = [line for line in install["source"] if "pip install" in line]
    extras = wanted.split("[")[1].split("]")[0].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert f"git+https://github.com/{repository}" in wanted
