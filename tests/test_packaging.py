"""What an installation has: type markers, and pinned versions of all that it may need."""

import re
import tomllib

from tests.cases import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages():
    return [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name.startswith(("ved_", "conversion"))]


def test_every_package_says_that_it_has_types():
    assert len(packages()) == 5
    for package in packages():
        assert (package / "py.typed").is_file(), package
    assert PROJECT["tool"]["setuptools"]["package-data"]["*"] == ["py.typed"]


def test_every_package_is_type_checked():
    assert {package.name for package in packages()} == set(PROJECT["tool"]["mypy"]["packages"])


def test_constraints_pin_what_the_extras_ask_for():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(one for values in extras.values() for one in values)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=\[;]", one)[0]).lower() for one in wanted}
    assert names - {"ved"} <= pinned
