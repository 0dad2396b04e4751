"""Between an Orbax tree, which has our Flax modules' parameters, and tensors under PyTorch's names."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conversion.formats.orbax import CARRIED, PARAMETERS
from conversion.rules import Row
from conversion.tables import Table, table_of
from conversion.tensors import Tensor, mapped
from ved_core.configs import CONFIG_FILE
from ved_core.configs.model import read_config
from ved_core.errors import CheckpointError


def to_torch(tensors: Mapping[str, Tensor], folder: Path, place: Path) -> dict[str, Tensor]:
    """A tree's arrays by PyTorch's names, for the config in `folder`; what no row knows keeps its own name.

    Raises CheckpointError where the tree at `place` is of something else, ConfigError where there is no config.
    """
    state = sorted({name.split("/")[0] for name in tensors} - {PARAMETERS, CARRIED})
    if state or not any(name.startswith(f"{PARAMETERS}/") for name in tensors):
        raise CheckpointError(
            f"{place}: its tree has {', '.join(state) or 'nothing'} at its top, where a model has {PARAMETERS} and "
            f"{CARRIED}; save the parameters alone: {{'{PARAMETERS}': nnx.to_pure_dict(nnx.state(model))}}"
        )
    table = table_of(read_config(folder / CONFIG_FILE))
    named = {}
    rest = {name.partition("/")[2].replace("/", "."): x for name, x in tensors.items() if name.startswith(PARAMETERS)}
    for row in table.rows:
        names = row.names("flax") if isinstance(row, Row) else ()
        if names and all(name in rest for name in names):
            assert isinstance(row, Row)
            named[row.stored] = row.store_lazily([rest.pop(name) for name in names], "flax")
    carried = {name.partition("/")[2]: x for name, x in tensors.items() if name.startswith(f"{CARRIED}/")}
    return named | carried | rest


def from_torch(tensors: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Tensors under canonical names as a tree's arrays, by path."""
    rows = {row.stored: row for row in table.rows if isinstance(row, Row)}
    tree: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in rows:
            tree[f"{CARRIED}/{name}"] = tensor
            continue
        for i, target in enumerate(rows[name].names("flax")):
            tree[f"{PARAMETERS}/{target.replace('.', '/')}"] = mapped(functools.partial(_part, rows[name], i), tensor)
    return tree


def _part(row: Row, number: int, array: np.ndarray) -> np.ndarray:
    return row.load(array, "flax")[number]
