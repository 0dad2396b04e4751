"""A checkpoint folder as a whole: its tensors found, matched with a table, and written back."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

import numpy as np

from conversion import names
from conversion.formats import safetensors
from conversion.rules import Carried, Computed, Framework, Row, Shape
from conversion.tables import Table, model_table, part_table
from ved_core.configs import CONFIG_FILE, Config, DecoderConfig, VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError
from ved_core.generation.config import GENERATION_CONFIG_FILE, GenerationConfig
from ved_core.generation.options import completed

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OTHER_FORMATS = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")

Arrays = dict[str, np.ndarray]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's tensors: `parameters` under our names and layouts, `carried` under the stored ones."""

    parameters: Arrays
    carried: Arrays


def read(folder: Path) -> Arrays:
    """Every tensor in a folder's safetensors file, or in all shards of its index, under their stored names.

    Raises CheckpointError naming the file where none is there, one is damaged, or an index leaves its folder.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return safetensors.read(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder, folder / INDEX_FILE)
    others = [name for name in OTHER_FORMATS if (folder / name).exists()]
    found = f"; it has {', '.join(others)}, which has to be saved as safetensors first" if others else ""
    raise CheckpointError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there{found}")


def _read_shards(folder: Path, index: Path) -> Arrays:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shard_of = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a readable index with a weight_map ({error!r})") from None
    tensors: Arrays = {}
    for file in sorted(set(shard_of.values())):
        inside = PurePosixPath(file).name == PureWindowsPath(file).name == file
        if not inside or "\0" in file or file in ("", ".."):
            raise CheckpointError(f"{index}: shard {file!r} lies outside its folder; shards stand beside their index")
        shard = safetensors.read(folder / file)
        promised = {name for name, place in shard_of.items() if place == file}
        if shard.keys() != promised:
            wrong = sorted(shard.keys() ^ promised)
            raise CheckpointError(f"{folder / file}: index and shard disagree about {names.listed(wrong)}")
        tensors |= shard
    return tensors


def load(folder: Path, table: Table, shapes: Mapping[str, Shape], framework: Framework) -> Weights:
    """Read a folder's weights as a framework's parameters, checked against the `shapes` that the config asks for.

    The arrays are views of the mapped file wherever the layouts allow. Raises CheckpointError naming what is missing,
    unexpected, mis-shaped, stored twice, or tied and yet different.
    """
    return from_stored(read(folder), table, shapes, framework, str(folder))


def from_stored(
    tensors: Mapping[str, np.ndarray], table: Table, shapes: Mapping[str, Shape], framework: Framework, source: str
) -> Weights:
    """Stored tensors as parameters; the arguments and errors of `load`."""
    found = names.match(tensors.keys(), table, source)
    names.check_ties(tensors, found, table, source)
    names.check_carried(tensors, found, table, source)
    parameters: Arrays = {}
    for row in table.rows:
        if isinstance(row, Row):
            parameters |= row_parameters(row, tensors[found[row.stored]], shapes, framework, source)
    if parameters.keys() != shapes.keys():
        raise CheckpointError(f"{source}: no row for {names.listed(parameters.keys() ^ shapes.keys())}")
    carried = {r.stored: tensors[found[r.stored]] for r in table.rows if isinstance(r, Carried) and r.stored in found}
    return Weights(parameters, carried)


def row_parameters(
    row: Row, tensor: np.ndarray, shapes: Mapping[str, Shape], framework: Framework, source: str
) -> Arrays:
    """One row's parameters. Raises CheckpointError where they have not the `shapes`, naming `source`."""
    targets = row.names(framework)
    try:
        parts = row.load(tensor, framework)
    except (ValueError, IndexError):
        parts = []
    if [part.shape for part in parts] != [shapes[name] for name in targets]:
        wanted = row.stored_shape([shapes[name] for name in targets], framework)
        raise CheckpointError(f"{source}: {row.stored} has shape {tensor.shape}, the config asks for {wanted}")
    return dict(zip(targets, parts, strict=True))


def to_stored(weights: Weights, table: Table, framework: Framework) -> Arrays:
    """Parameters and carried tensors under their stored names and in their stored layouts."""
    tensors: Arrays = {}
    for row in table.rows:
        if isinstance(row, Row):
            tensors[row.stored] = row.store([weights.parameters[name] for name in row.names(framework)], framework)
        elif isinstance(row, Carried) and row.stored in weights.carried:
            tensors[row.stored] = weights.carried[row.stored]
    return tensors


def computed(table: Table) -> Arrays:
    """The buffers that other libraries want beside `to_stored`'s tensors."""
    return {row.stored: row.compute() for row in table.rows if isinstance(row, Computed)}


def new_carried(table: Table, seed: int) -> Arrays:
    """Initial values of the tensors that a new model carries, float32."""
    rng = np.random.default_rng(seed)
    return {
        row.stored: (row.mean + rng.standard_normal(row.shape) * row.std).astype(np.float32)
        for row in table.rows
        if isinstance(row, Carried) and row.std is not None
    }


def fitting(carried: Mapping[str, np.ndarray], table: Table) -> Arrays:
    """Those carried tensors that still have the shape that the config asks for (a vocabulary may have been resized)."""
    shapes = {row.stored: row.shape for row in table.rows if isinstance(row, Carried)}
    return {name: tensor for name, tensor in carried.items() if tensor.shape == shapes.get(name)}


def save(folder: Path, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Write weights and text files (name -> content) into `folder`, each file whole or not at all.

    Files are written in a temporary sibling and moved into place, so that an interrupted save leaves none half
    written; other files in the folder stay. Raises OSError where the disk refuses.
    """

    def fill(part: Path) -> None:
        safetensors.write(part / WEIGHTS_FILE, tensors)
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")

    write_folder(folder, fill)
    # A sharded checkpoint that stood here before would now be a second, older model.
    (folder / INDEX_FILE).unlink(missing_ok=True)


def save_model(
    folder: Path,
    weights: Weights,
    config: VisionEncoderDecoderConfig,
    generation: GenerationConfig,
    framework: Framework,
) -> None:
    """Write a whole model as transformers would: weights, config.json and generation_config.json.

    generation_config.json is completed with what decoding would take from elsewhere: other libraries look nowhere
    else. Raises OSError where the disk refuses.
    """
    table = model_table(config)
    tensors = to_stored(weights, table, framework) | computed(table)
    generation = completed(generation, config)
    config = config.copy()
    if not config.get("architectures"):
        config.architectures = [config.architecture]
    state_dtype(config, weights)
    texts = {CONFIG_FILE: config.to_json(), GENERATION_CONFIG_FILE: generation.to_json()}
    save(folder, tensors, texts)


def save_part(folder: Path, weights: Weights, config: Config, framework: Framework) -> None:
    """Write an encoder, or a decoder as a causal language model, by itself, as transformers would.

    What new models do not carry is left out: other libraries would not expect it. Raises OSError where the disk
    refuses.
    """
    table = part_table(config)
    foreign = {row.stored for row in table.rows if isinstance(row, Carried) and row.foreign}
    carried = {name: array for name, array in weights.carried.items() if name not in foreign}
    config = config.copy()
    config.architectures = [config.architecture]
    if isinstance(config, DecoderConfig):
        config.is_decoder = config.add_cross_attention = True
    state_dtype(config, weights)
    tensors = to_stored(Weights(weights.parameters, carried), table, framework) | computed(table)
    save(folder, tensors, {CONFIG_FILE: config.to_json()})


def state_dtype(config: Config, weights: Weights) -> None:
    """Put the parameters' dtype into a config that is to be written beside them."""
    config.torch_dtype = str(next(iter(weights.parameters.values())).dtype)
    if config.get("dtype") is not None:  # the same under the name that newer releases write and read first
        config.dtype = config.torch_dtype


def of_part(tensors: Mapping[str, T], part: str) -> dict[str, T]:
    """The tensors of the "encoder" or the "decoder" out of a whole model's, named as within the part."""
    return {name.removeprefix(f"{part}."): array for name, array in tensors.items() if name.startswith(f"{part}.")}


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a temporary sibling of `folder`, then move them in."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        fill(part)
        # mkdtemp is private to its user; the folder gets what mkdir would have given.
        folder.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
