"""Checkpoints in the layouts of the repositories that first published them, brought into Hugging Face's."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from types import ModuleType

from conversion.names import listed
from conversion.originals import donut, trocr
from conversion.originals.found import Found
from conversion.originals.rows import AnyRow, Copy, Dropped, Row
from conversion.tables import WRAPPERS
from conversion.tensors import Tensor, equal
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError, ConfigError

LAYOUTS: tuple[ModuleType, ...] = (trocr, donut)
"""Modules with `LAYOUT`, `MARKS`, `ENCODERS`, `DECODERS`, `derived(found)` and `rows(config, found)`."""


@dataclasses.dataclass(frozen=True)
class Original:
    """An original checkpoint in Hugging Face's layout. `layout`: what it was; `file`: its tensors as they were;
    `became`: each name in the file and the stored names that it became, none where it was left behind."""

    layout: str
    config: VisionEncoderDecoderConfig
    tensors: dict[str, Tensor]
    became: dict[str, tuple[str, ...]]
    file: Mapping[str, Tensor]


def translate(
    tensors: Mapping[str, Tensor], source: str, config: VisionEncoderDecoderConfig | None = None
) -> Original | None:
    """An original checkpoint's config and tensors under the names, and in the layouts, that `model_table` expects; None
    where the tensors are of no layout that is known here.

    The config is derived from names and shapes, or checked against them where one is given. Tensors may be anything
    with `shape`, `dtype` and `__array__`: they are handed on as they are, and as views of one where it is fused. Only
    those that are split or compared are read. Raises CheckpointError naming `source` and what is missing, unexpected or
    mis-shaped, a broken tie, or that the config cannot be told and has to be given.
    """
    for layout in LAYOUTS:
        names = bare_names(tensors.keys(), layout.MARKS)
        if names:
            found = Found({bare: tensors[name] for bare, name in names.items()}, source, layout.LAYOUT)
            config = checked(config, layout, source) if config is not None else derived(layout, found)
            rows = tuple(layout.rows(config, found))
            check_names(rows, found)
            became: dict[str, tuple[str, ...]] = dict.fromkeys(names.values(), ())
            became |= {names[row.original]: row.stored for row in rows if isinstance(row, Row)}
            return Original(layout.LAYOUT, config, dict(stored(rows, found)), became, tensors)
    return None


def bare_names(names: Collection[str], marks: tuple[str, ...]) -> dict[str, str]:
    """Name without a wrapper's prefix -> name in the file, where any begins with one of `marks`; else empty."""
    for wrapper in WRAPPERS:
        bare = {name.removeprefix(wrapper): name for name in names if name.startswith(wrapper)}
        if len(bare) == len(names) and any(name.startswith(marks) for name in bare):
            return bare
    return {}


def derived(layout: ModuleType, found: Found) -> VisionEncoderDecoderConfig:
    """The config that names and shapes tell. Raises CheckpointError where they tell none."""
    try:
        config: VisionEncoderDecoderConfig = layout.derived(found)
    except ConfigError as error:
        raise found.unknown(f"its tensors ask for {error}") from None
    return config


def checked(config: VisionEncoderDecoderConfig, layout: ModuleType, source: str) -> VisionEncoderDecoderConfig:
    """A given config, where the layout can be of its kind. Raises CheckpointError."""
    for part, kinds in (("encoder", layout.ENCODERS), ("decoder", layout.DECODERS)):
        kind = getattr(config, part).model_type
        if kind not in kinds:
            raise CheckpointError(
                f"{source}: {layout.LAYOUT} has an {part} of model_type {' or '.join(kinds)}, its config says {kind}"
            )
    if config.needs_projection:
        raise CheckpointError(
            f"{source}: the config asks for a projection between encoder and decoder, which {layout.LAYOUT} has not: "
            f"set decoder.cross_attention_hidden_size to {config.encoder.hidden_size}"
        )
    return config


def check_names(rows: Iterable[AnyRow], found: Found) -> None:
    """Raise CheckpointError where tensors are missing or unexpected."""
    missing = [row.original for row in rows if isinstance(row, Row) and row.original not in found.tensors]
    unexpected = sorted(found.tensors.keys() - {row.original for row in rows})
    parts = [f"{len(missing)} tensors are missing: {listed(missing)}"] if missing else []
    parts += [f"{len(unexpected)} are unexpected: {listed(unexpected)}"] if unexpected else []
    if parts:
        raise CheckpointError(
            f"{found.source} is no whole {found.layout}: {'; '.join(parts)}. "
            "Take a checkpoint that is whole, and the config of the model that it is"
        )


def stored(rows: Iterable[AnyRow], found: Found) -> Iterable[tuple[str, Tensor]]:
    """Stored names and tensors. Raises CheckpointError where a tensor is mis-shaped or differs from what it copies."""
    for row in rows:
        if isinstance(row, Dropped) or row.original not in found.tensors:
            continue
        tensor = found.tensors[row.original]
        if isinstance(row, Copy):
            if not equal(tensor, found.tensors[row.of]):
                raise CheckpointError(
                    f"{found.source}: {row.original} differs from {row.of}, though the config ties them "
                    "(decoder.tie_word_embeddings is true). Set it to false to have both"
                )
        elif tuple(tensor.shape) != row.shape:
            raise CheckpointError(
                f"{found.source}: {row.original} has shape {tuple(tensor.shape)}, where {found.layout} of this size "
                f"has {row.shape}. Take a checkpoint that is whole, and the config of the model that it is"
            )
        else:
            yield from row.parts(tensor).items()
