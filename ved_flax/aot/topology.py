"""TPUs by name, as libtpu describes them to the compiler: no TPU is needed, and none is touched."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from ved_core.errors import ConfigError, VedError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at most, from its maker's data sheet."""

    flops: float
    """Operations per second on bfloat16."""
    bandwidth: float
    """Bytes per second between memory and core."""
    memory: int
    """Bytes."""
    clock: float
    """Cycles per second."""


CHIPS = {"v5e": Chip(197e12, 819e9, 16 * 2**30, 1.5e9)}
"""By the first part of a topology's name."""
WITHOUT_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu reads: that other processes may have it loaded, as this one owns no TPU, and what it would else ask
Google's cloud, and complain of on stderr; what is compiled for does not depend on it."""
MOST_ON_A_HOST = 2
"""Chips of a host along each axis; smaller topologies have one host."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in a rectangle."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]
    """They can be compiled for, and hold no arrays."""


def topology(name: str) -> Topology:
    """The chips of a name as v5e:2x4. Raises ConfigError for a name that is none, VedError where libtpu is missing."""
    found = re.fullmatch(r"(\w+):([1-9]\d*)x([1-9]\d*)", name)
    if found is None or found[1] not in CHIPS:
        raise ConfigError(f"topology {name!r} is not known: name one as v5e:1x1 or v5e:2x4 ({', '.join(CHIPS)})")
    check_libtpu()
    bounds = (*(min(MOST_ON_A_HOST, int(size)) for size in found.groups()[1:]), 1)
    for name_of, value in WITHOUT_TPU.items():
        os.environ.setdefault(name_of, value)
    try:
        described = topologies.get_topology_desc(name, platform="tpu", chips_per_host_bounds=bounds)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"topology {name!r}: libtpu has no such one, try v5e:1x1 or v5e:2x4 ({reason})") from error
    return Topology(name, CHIPS[found[1]], tuple(described.devices))


def check_libtpu() -> None:
    """Raises VedError, saying what to install, where libtpu is missing."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise VedError(
            f"compiling for a TPU needs libtpu: pip install '{wanted_libtpu()}', or `pip install --target FOLDER` it "
            "and start with PYTHONPATH=FOLDER JAX_PLATFORMS=cpu, to leave this environment as it is"
        )


def wanted_libtpu() -> str:
    """The libtpu that the installed JAX goes with, as pip takes it."""
    for requirement in importlib.metadata.requires("jax") or ():
        if requirement.startswith("libtpu"):
            return requirement.partition(";")[0].strip()
    return "libtpu"


if __name__ == "__main__":
    print(wanted_libtpu())
