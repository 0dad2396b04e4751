"""README and docs say what is so: tables are made from the registries, Python examples run, commands exist."""

import re
import shutil

import pytest

pytest.importorskip("flax")
pytest.importorskip("torch")

from tests import cases, options_table
from tests.support_matrix import PAGES, README, TABLES, rewritten

TEXT = README.read_text(encoding="utf-8")
HUB_NAME = re.compile(r'"(microsoft|google|google-bert|someone)/[\w.-]+"')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_are_what_the_code_says(page):
    text = page.read_text(encoding="utf-8")
    assert rewritten(text) == text, "run: python -m tests.support_matrix"


def test_every_table_is_on_a_page():
    whole = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(whole.count(f"<!-- {name} -->") == 1 for name in TABLES)


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


def run(examples, tmp_path, monkeypatch):
    """Run one page's examples one after another, with small local folders and images for what they name."""
    monkeypatch.chdir(tmp_path)
    for name in ("page.png", "a.png", "b.png"):
        shutil.copy(cases.DIGITS / "00.png", tmp_path / name)
    names: dict[str, object] = {}
    for example in examples:
        exec(HUB_NAME.sub(repr(str(cases.READER)), example), names)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_its_examples_run(framework, tmp_path, monkeypatch):
    examples = list(blocks(framework))
    assert examples
    run(examples, tmp_path, monkeypatch)


def examples_of(page):
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(filter(examples_of, PAGES[1:])), ids=lambda page: page.stem)
def test_the_examples_of_the_docs_run(page, tmp_path, monkeypatch):
    run(examples_of(page), tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_their_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target
