"""Which stored tensor belongs to which row of a table."""

from collections.abc import Collection, Iterable, Mapping

from conversion.rules import AnyRow, Carried, Row, Tied
from conversion.tables import WRAPPERS, Table
from conversion.tensors import FLOATS, Tensor, equal
from ved_core.errors import CheckpointError

SHOWN = 8
"""How many names an error lists."""


def match(stored: Collection[str], table: Table, source: str) -> dict[str, str]:
    """Canonical name -> the name in the file, for every row that is there.

    Raises CheckpointError naming `source` where names are missing, unexpected, or stored twice under two spellings.
    """
    names = _unwrapped(stored, table)
    found: dict[str, str] = {}
    for row in table.rows:
        spelled = [name for name in table.spellings(row.stored) if name in names]
        if len(spelled) > 1:
            raise CheckpointError(f"{source}: {row.stored} is stored twice, as {' and '.join(spelled)}")
        if spelled:
            found[row.stored] = names[spelled[0]]
    found = with_stand_ins(found, table.rows)
    missing = [row.stored for row in table.rows if isinstance(row, Row) and row.stored not in found]
    unexpected = sorted(set(names.values()) - set(found.values()))
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"{len(missing)} tensors are missing: {listed(missing)}")
        if unexpected:
            parts.append(f"{len(unexpected)} are unexpected: {listed(unexpected)}")
        raise CheckpointError(
            f"{source} does not fit its config.json: {'; '.join(parts)}. Take both from one checkpoint"
        )
    return found


def with_stand_ins(found: Mapping[str, str], rows: Iterable[AnyRow]) -> dict[str, str]:
    """`found` with what second copies stand in for."""
    full = dict(found)
    for row in rows:
        if isinstance(row, Tied | Carried) and row.to and row.stored in full and row.to not in full:
            full[row.to] = full[row.stored]
    return full


def _unwrapped(stored: Collection[str], table: Table) -> dict[str, str]:
    """Name without a wrapper's prefix -> name in the file, for the wrapper under which most rows are found."""
    wanted = {name for row in table.rows for name in table.spellings(row.stored)}
    best: dict[str, str] = {}
    hits = -1
    for wrapper in WRAPPERS:
        names = {name.removeprefix(wrapper): name for name in stored}
        count = len(wanted & names.keys())
        if len(names) == len(stored) and count > hits:
            best, hits = names, count
    return best


def check_ties(tensors: Mapping[str, Tensor], found: Mapping[str, str], table: Table, source: str) -> None:
    """Raise CheckpointError where two copies that the config ties are not the same, bit for bit."""
    for row in table.rows:
        if not isinstance(row, Tied) or not row.exact or row.stored not in found:
            continue
        if found[row.stored] == found[row.to]:
            continue
        if not equal(tensors[found[row.stored]], tensors[found[row.to]]):
            raise CheckpointError(
                f"{source}: {found[row.stored]} differs from {found[row.to]}, though the config ties them "
                "(decoder.tie_word_embeddings is true). Set it to false in config.json to load both"
            )


def check_shapes(tensors: Mapping[str, Tensor], found: Mapping[str, str], table: Table, source: str) -> None:
    """Raise CheckpointError where a tensor has another shape than the config says, or is a parameter of whole numbers
    (as quantised ones are)."""
    for row in table.rows:
        if isinstance(row, Row | Carried) and row.stored in found:
            shape = tensors[found[row.stored]].shape
            if shape != row.shape:
                raise CheckpointError(f"{source}: {row.stored} has shape {shape}, the config asks for {row.shape}")
            if isinstance(row, Row) and (dtype := tensors[found[row.stored]].dtype) not in FLOATS:
                raise CheckpointError(f"{source}: {row.stored} is of dtype {dtype}, and parameters are of floats")


def listed(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
