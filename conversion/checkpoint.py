"""A checkpoint folder as a whole: its tensors found, matched with a table, and written back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from conversion import names
from conversion.rules import Carried, Framework, Row
from conversion.saving import Stored, write
from conversion.source import Wanted, find
from conversion.tables import Table, model_table, part_table
from conversion.tensors import Tensor
from ved_core import digests
from ved_core.configs import CONFIG_FILE, Config, DecoderConfig, VisionEncoderDecoderConfig
from ved_core.generation.config import GENERATION_CONFIG_FILE, GenerationConfig
from ved_core.generation.options import completed

Tensors = Mapping[str, Tensor]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's tensors: `parameters` under our names and layouts, `carried` under the stored ones."""

    parameters: Tensors
    carried: Mapping[str, np.ndarray]


def read(place: Path, wanted: Wanted = None, check_digests: bool | None = None) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder or file, under PyTorch's names and in its layouts, whatever the format.

    `check_digests`: whether files that have digests are compared with them first, by default yes, unless the
    environment's VED_CHECK_DIGESTS is 0. Raises CheckpointError naming the file where none is there (in the format
    `wanted`), one is damaged, or an index leaves its folder.
    """
    source = find(place, wanted)
    if digests.wanted(check_digests):
        source.check()
    return source.tensors()


def load(
    folder: Path, table: Table, framework: Framework, wanted: Wanted = None, check_digests: bool | None = None
) -> Weights:
    """Read a folder's weights as a framework's parameters; `check_digests` as in `read`.

    The tensors are views of the mapped file wherever format and layouts allow. Raises CheckpointError naming what is
    missing, unexpected, mis-shaped, stored twice, or tied and yet different.
    """
    return from_stored(read(folder, wanted, check_digests), table, framework, str(folder))


def canonical(tensors: Tensors, table: Table, source: str) -> dict[str, Tensor]:
    """Stored tensors under a table's own names, without buffers and second copies. Raises CheckpointError as `load`
    does."""
    found = names.match(tensors.keys(), table, source)
    names.check_shapes(tensors, found, table, source)
    names.check_ties(tensors, found, table, source)
    kept = (row.stored for row in table.rows if isinstance(row, Row | Carried) and row.stored in found)
    return {stored: tensors[found[stored]] for stored in kept}


def from_stored(tensors: Tensors, table: Table, framework: Framework, source: str) -> Weights:
    """Stored tensors as parameters; the arguments and errors of `load`."""
    return to_weights(canonical(tensors, table, source), table, framework)


def to_weights(tensors: Tensors, table: Table, framework: Framework) -> Weights:
    """Tensors under a table's own names as parameters and carried ones."""
    parameters: dict[str, Tensor] = {}
    carried: dict[str, np.ndarray] = {}
    for row in table.rows:
        if isinstance(row, Row) and row.stored in tensors:
            parts = row.load_lazily(tensors[row.stored], framework)
            parameters |= dict(zip(row.names(framework), parts, strict=True))
        elif isinstance(row, Carried) and row.stored in tensors:
            carried[row.stored] = np.asarray(tensors[row.stored])
    return Weights(parameters, carried)


def to_stored(weights: Weights, table: Table, framework: Framework) -> dict[str, Tensor]:
    """Parameters and carried tensors under their stored names and in their stored layouts."""
    tensors: dict[str, Tensor] = {}
    for row in table.rows:
        if isinstance(row, Row):
            parameters = [weights.parameters[name] for name in row.names(framework)]
            tensors[row.stored] = row.store_lazily(parameters, framework)
        elif isinstance(row, Carried) and row.stored in weights.carried:
            tensors[row.stored] = weights.carried[row.stored]
    return tensors


def new_carried(table: Table, seed: int) -> dict[str, np.ndarray]:
    """Initial values of the tensors that a new model carries, float32."""
    rng = np.random.default_rng(seed)
    return {
        row.stored: (row.mean + rng.standard_normal(row.shape) * row.std).astype(np.float32)
        for row in table.rows
        if isinstance(row, Carried) and row.std is not None
    }


def fitting(carried: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Those carried tensors that still have the shape that the config asks for (a vocabulary may have been resized)."""
    shapes = {row.stored: row.shape for row in table.rows if isinstance(row, Carried)}
    return {name: tensor for name, tensor in carried.items() if tensor.shape == shapes.get(name)}


def save_model(
    folder: Path,
    weights: Weights,
    config: VisionEncoderDecoderConfig,
    generation: GenerationConfig,
    framework: Framework,
    to: str = "safetensors",
    shard_size: int | str | None = None,
    beside: Mapping[str, bytes] = {},
) -> None:
    """Write a whole model as transformers would: weights, config.json and generation_config.json, and other files
    `beside` them (name -> content).

    generation_config.json is completed with what decoding would take from elsewhere: other libraries look nowhere
    else. Raises OSError where the disk refuses, CheckpointError where the format has not the dtype.
    """
    generation = completed(generation, config)
    config = config.copy()
    if not config.get("architectures"):
        config.architectures = [config.architecture]
    state_dtype(config, next(iter(weights.parameters.values())).dtype)
    texts: dict[str, str | bytes] = {
        **beside,
        CONFIG_FILE: config.to_json(),
        GENERATION_CONFIG_FILE: generation.to_json(),
    }
    stored = Stored(to_stored(weights, model_table(config), framework), config)
    write(folder, stored, texts, to, shard_size)


def save_part(
    folder: Path,
    weights: Weights,
    config: Config,
    framework: Framework,
    to: str = "safetensors",
    shard_size: int | str | None = None,
) -> None:
    """Write an encoder, or a decoder as a causal language model, by itself, as transformers would.

    Raises as `save_model` does.
    """
    config = part_of_its_own(config)
    tensors = to_stored(Weights(weights.parameters, weights.carried), part_table(config), framework)
    state_dtype(config, next(iter(weights.parameters.values())).dtype)
    write(folder, Stored(without_foreign(tensors, config), config), {CONFIG_FILE: config.to_json()}, to, shard_size)


def part_of_its_own(config: Config) -> Config:
    """A copy of a half's config, as its checkpoint has it by itself."""
    config = config.copy()
    config.architectures = [config.architecture]
    if isinstance(config, DecoderConfig):
        config.is_decoder = config.add_cross_attention = True
    return config


def without_foreign(tensors: Tensors, config: Config) -> dict[str, Tensor]:
    """A half's tensors without what new ones do not carry: other libraries would not expect it."""
    foreign = {row.stored for row in part_table(config).rows if isinstance(row, Carried) and row.foreign}
    return {name: tensor for name, tensor in tensors.items() if name not in foreign}


def state_dtype(config: Config, dtype: np.dtype) -> None:
    """Put the parameters' dtype into a config that is to be written beside them."""
    config.torch_dtype = str(dtype)
    if config.get("dtype") is not None:  # the same under the name that newer releases write and read first
        config.dtype = config.torch_dtype


def of_part(tensors: Mapping[str, T], part: str) -> dict[str, T]:
    """The tensors of the "encoder" or the "decoder" out of a whole model's, named as within the part."""
    return {name.removeprefix(f"{part}."): array for name, array in tensors.items() if name.startswith(f"{part}.")}
