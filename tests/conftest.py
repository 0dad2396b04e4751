"""Settings of every test: CPU, eight simulated devices, no network, no compilation cache. Fixtures of several files."""

import logging
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
if "--xla_backend_optimization_level=0" in FLAGS and find_spec("jaxlib") and version("jaxlib").startswith("0.10."):
    # Compiling is to be short, and the older emitters take half as long. Later versions have them no more.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = FLAGS
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MAPS = Path("/proc/self/maps")
MOST_MAPS = 20_000
"""A third of what Linux allows a process. Every program that XLA compiles for the CPU takes hundreds, and beyond the
limit compiling ends the process."""


@pytest.fixture(autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Let go of compiled programs before there are too many."""
    yield
    if "jax" in sys.modules and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def no_compilation_cache() -> None:
    """Commands that are run in a test's own process choose a folder for all that follow."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_compilation_cache_dir is not None:
        from jax.experimental.compilation_cache import compilation_cache

        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """Commands that are run in a test's own process say more of our log than the tests that follow expect."""
    logger = logging.getLogger("ved")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def processor() -> Any:
    """The small reader's."""
    from tests.training_data import reader_processor

    return reader_processor()


@pytest.fixture
def train() -> Iterator[Any]:
    """Makes batches of so many pictures."""
    from tests.training_data import batches_of_pictures

    with batches_of_pictures() as make:
        yield make


MOST_EXCUSED = 0.03
"""Of the combinations of decoding options, how many may differ from transformers where it is itself undecided."""


def combinations(reporter: pytest.TerminalReporter) -> list[str]:
    """How each combination that was compared came out."""
    reports = [report for report in reporter.stats.get("passed", []) if report.when == "call"]
    return [value for report in reports for name, value in report.user_properties if name == "combination"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if outcomes := combinations(terminalreporter):
        excused = outcomes.count("excused")
        terminalreporter.write_line(f"combinations of decoding options: {len(outcomes)}, of which excused: {excused}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    outcomes = combinations(reporter) if reporter else []
    if outcomes.count("excused") > max(1, MOST_EXCUSED * len(outcomes)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
