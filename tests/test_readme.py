"""README says what is so: its table is made from the registries, and its Python examples run."""

import re
import shutil

import pytest

pytest.importorskip("flax")
pytest.importorskip("torch")

from tests import cases, options_table
from tests.support_matrix import README, rewritten

TEXT = README.read_text(encoding="utf-8")
HUB_NAME = re.compile(r'"[A-Za-z][\w-]*/[\w.-]+"')


def test_the_table_is_what_the_registries_say():
    assert rewritten(TEXT) == TEXT, "run: python -m tests.support_matrix"


def test_every_option_has_a_test_that_shows_it():
    source = "".join(
        (cases.TESTS / f"test_{name}.py").read_text() for name in ("decoding", "decoding_options", "flax_generate")
    )
    shown = source + (cases.TESTS / "decoding.py").read_text()
    for options, test in options_table.SHOWN_BY.items():
        assert f"def {test}(" in source
        for option in options.split(", "):
            assert option in shown


def blocks(framework):
    """The Python examples of the sections about one framework, in order."""
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE):
        title = section.partition("\n")[0]
        if ("PyTorch" in title) == (framework == "torch"):
            yield from re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_its_examples_run(framework, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ved_core").symlink_to(cases.ROOT / "ved_core")
    for name in ("page.png", "a.png", "b.png"):
        shutil.copy(cases.EXAMPLES / "00.png", tmp_path / name)
    examples = list(blocks(framework))
    assert examples
    names: dict[str, object] = {}
    for example in examples:
        exec(HUB_NAME.sub(repr(str(cases.READER)), example), names)
