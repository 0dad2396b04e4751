"""Packages that a command needs and an installation may lack."""

import importlib.util
from collections.abc import Iterable

from ved_core.errors import VedError


def needed(packages: Iterable[str], extra: str) -> None:
    """Raise VedError where one is missing, saying what to install."""
    missing = [name for name in packages if not present(name)]
    if missing:
        raise VedError(f'this needs {", ".join(missing)}: pip install "ved[{extra}]"')


def present(name: str) -> bool:
    """Whether a package, or a module inside one, can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
