"""HDF5 files as TensorFlow's classes wrote them (tf_model.h5), by h5py alone.

A group for each of the model's layers has the layer's weights as datasets under their whole names, which its attribute
weight_names lists; one of several files has no groups, and lists its datasets in layer_names.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from conversion.formats import files
from conversion.tensors import FLOATS, Lazy, Tensor, contiguous, equal
from ved_core.errors import CheckpointError

ATTRIBUTE = 64512
"""Bytes that an attribute may have; longer lists of names are split."""
DEEPEST = 64
MOST = 10_000
"""How many groups and datasets a file may have; reading each takes a fraction of a millisecond."""
PACKED = 8
SMALL = 2**24
"""How many times smaller packed numbers may be than they are, but for small arrays: weights hardly shrink."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LAYERS, WEIGHTS = "layer_names", "weight_names"
HEADS = frozenset({"mlm___cls", "lm_head"})
"""Vocabulary heads that are a layer of their own, in decoders by themselves."""
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
"""What h5py raises of damaged files."""
SHARD = "shard/"
"""What stands for the first part of a name in a file that leaves it out."""


def h5py() -> ModuleType:
    """The library. Raises CheckpointError where it is not installed."""
    try:
        import h5py
    except ImportError:
        raise CheckpointError('TensorFlow\'s files (.h5) need h5py: pip install "ved[tf]"') from None
    return h5py


def read(path: Path) -> dict[str, Tensor]:
    """The file's weights as views of its memory map where it keeps them in one piece, under their whole names
    ("tf_vision_encoder_decoder_model/encoder/vit/layernorm/gamma:0").

    Raises CheckpointError naming the file where it is missing or damaged, or has links or types that weights have not.
    """
    library = h5py()
    data = files.map_file(path)
    try:
        with library.File(path, "r") as file:
            prefix = "" if any(_is_layer(inside) for _, inside in _members(file)) else SHARD
            found: dict[str, Tensor] = {}
            places: dict[str, int] = {}
            for name, dataset in _datasets(file):
                if places.setdefault(name, place := _place(dataset)) == place and name in found:
                    continue  # linked from several layers
                tensor = _tensor(dataset, data, path)
                if not equal(found.setdefault(name, tensor), tensor):
                    raise ValueError(f"{name} is there twice, and differs")
            return {prefix + name: tensor for name, tensor in found.items()}
    except DAMAGED as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(f"{error}".split())
    return CheckpointError(f"{path}: not a whole HDF5 file of weights ({reason}); download it again")


def _members(group: Any) -> Iterator[tuple[str, Any]]:
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py().HardLink):
            raise ValueError(f"{group.name} has a link out of it: {key}")
        yield key, group[key]


def _is_layer(member: Any) -> bool:
    return any(name.startswith(WEIGHTS) for name in member.attrs)


def _place(member: Any) -> int:
    """Where a group or dataset is in the file: what tells it from others, by whatever name it is reached."""
    return h5py().h5o.get_info(member.id).addr


def _datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """All datasets by name, those of a layer's group without the group's own name. Raises ValueError where there are
    more than a model's, or a group is in several."""
    library = h5py()
    groups = {_place(file)}
    left = MOST

    def inside(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        nonlocal left
        for key, member in _members(group):
            left -= 1
            if left < 0 or depth > DEEPEST:
                raise ValueError(f"more than {MOST} groups and arrays, or {DEEPEST} groups inside one another")
            if isinstance(member, library.Dataset):
                yield f"{prefix}{key}", member
            elif isinstance(member, library.Group):
                if (place := _place(member)) in groups:
                    raise ValueError(f"{prefix}{key} is a group that is in another one too")
                groups.add(place)
                layer = depth == 0 and _is_layer(member)
                yield from inside(member, "" if layer else f"{prefix}{key}/", depth + 1)
            else:
                raise ValueError(f"{prefix}{key} is neither a group nor a dataset")

    yield from inside(file, "", 0)


def _tensor(dataset: Any, data: mmap.mmap, path: Path) -> Tensor:
    kind = _dtype(dataset)
    shape = dataset.shape
    if kind is None or shape is None or dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} is not an array of numbers inside the file")
    place = dataset.id.get_offset()
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    if place is not None and dataset.chunks is None and place + size <= len(data):
        return files.view(data, kind, shape, place, size // kind.itemsize)
    stored = dataset.id.get_storage_size()
    if size and (not stored or size > max(PACKED * stored, SMALL)):
        raise ValueError(f"{dataset.name} has the shape {shape} and not its numbers")
    name, before = dataset.name, files.identity(path)

    def make() -> np.ndarray:
        files.check_identity(path, before)
        try:
            with h5py().File(path, "r") as file:
                return file[name][...].astype(kind, copy=False)
        except DAMAGED as error:
            raise _damaged(path, error) from None

    return Lazy(shape, kind, make)


def _dtype(dataset: Any) -> np.dtype | None:
    """The numbers' dtype in the file; None where it is of no weights."""
    kind = dataset.id.get_type()
    if isinstance(kind, h5py().h5t.TypeFloatID) and kind.get_size() == 2 and kind.get_fields()[1:5] == (7, 8, 0, 7):
        return BFLOAT16
    dtype = dataset.dtype
    plain = dtype in FLOATS or dtype.kind in "iub"
    return dtype if plain and dtype.isnative and dtype.subdtype is None else None


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, one at a time, on disk when this returns. A name's second part is its layer.

    Raises OSError where the disk refuses, CheckpointError for a dtype that such files have not.
    """
    layers: dict[str, list[str]] = {}
    for name in tensors:
        layers.setdefault(name.split("/")[1], []).append(name)
    with _created(path) as file:
        _put_names(file, LAYERS, list(layers))
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = "2.18.0"
        for layer, names in layers.items():
            group = file.create_group(layer)
            _put_names(group, WEIGHTS, names + (shared_embeddings(tensors) if layer in HEADS else []))
            for name in names:
                _put(group, name, tensors[name])
        for head in HEADS & layers.keys():  # links to the same numbers
            for name in shared_embeddings(tensors):
                file[f"{head}/{name}"] = file[f"{name.split('/')[1]}/{name}"]
        _put_names(file.create_group("top_level_model_weights"), WEIGHTS, [])


class _Kept:
    """A file as HDF5 writes it. The library does not survive a disk that refuses: the first error is kept, and what
    follows is taken and not written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None
        self.seek, self.tell, self.read = file.seek, file.tell, file.read
        self.readinto = file.readinto  # type: ignore[attr-defined]

    def _do(self, function: Callable[[], Any]) -> None:
        if self.error is None:
            try:
                function()
            except OSError as error:
                self.error = error

    def write(self, data: memoryview) -> int:
        self._do(lambda: self.file.write(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._do(lambda: self.file.truncate(size))
        return size

    def flush(self) -> None:
        self._do(self.file.flush)


@contextmanager
def _created(path: Path) -> Iterator[Any]:
    """A new HDF5 file, on disk when the block is left. Raises OSError where the disk refuses."""
    with files.written(path) as file:
        kept = _Kept(file)
        with h5py().File(kept, "w") as opened:
            yield opened
        if kept.error is not None:
            raise kept.error


def shared_embeddings(names: Iterable[str]) -> list[str]:
    """The weights that a vocabulary head has a second time: those of the embeddings that it shares."""
    return [name for name in names if name.split("/")[2] == "embeddings"]


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The same for one of several files, in which names stand without their first part."""
    shortened = {name.partition("/")[2]: tensor for name, tensor in tensors.items()}
    with _created(path) as file:
        for name, tensor in shortened.items():
            _put(file, name, tensor)
        _put_names(file, LAYERS, list(shortened))


def _put(group: Any, name: str, tensor: Tensor) -> None:
    library = h5py()
    if tensor.dtype == BFLOAT16:
        kind = bfloat16_type()
    elif tensor.dtype.type.__module__ == "numpy":
        kind = library.h5t.py_create(tensor.dtype)
    else:
        raise CheckpointError(
            f"{name}: HDF5 files have no dtype {tensor.dtype}; convert with --dtype bf16, fp16 or fp32"
        )
    links = library.h5p.create(library.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(library.h5t.CSET_UTF8)
    space = library.h5s.create_simple(tensor.shape) if tensor.shape else library.h5s.create(library.h5s.SCALAR)
    dataset = library.h5d.create(group.id, name.encode(), kind, space, lcpl=links)
    if tensor.nbytes:
        dataset.write(library.h5s.ALL, library.h5s.ALL, np.frombuffer(contiguous(tensor), np.uint8), mtype=kind)


def bfloat16_type() -> Any:
    """HDF5's description of a bfloat16, which readers that have none widen to a float32."""
    library = h5py()
    kind = library.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # sign's bit, exponent's place and size, mantissa's place and size
    kind.set_size(2)
    kind.set_precision(16)
    kind.set_ebias(127)
    return kind


def _put_names(group: Any, attribute: str, names: list[str]) -> None:
    """A list of names as Keras keeps it: where it is too long, in pieces that are numbered."""
    pieces = 1
    while any(np.asarray(part).nbytes > ATTRIBUTE for part in np.array_split(names, pieces)):
        pieces += 1
    for i, part in enumerate(np.array_split(names, pieces)):
        group.attrs[attribute if pieces == 1 else f"{attribute}{i}"] = list(map(str, part))
