"""Rows of the conversion tables, and the rules by which a stored tensor becomes parameters and back.

Hugging Face's PyTorch names and layouts are the vocabulary of a table's left side. The right side is a path in our
modules, which both frameworks share; a rule knows each framework's leaf name and layout under that path, and those of
Hugging Face's own Flax and TensorFlow classes (`conversion.naming`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from conversion.tensors import Lazy, Tensor, mapped

Framework = Literal["flax", "torch"]
Dialect = Literal["hf_flax", "hf_tf"]
"""Whose names and layouts other than PyTorch's a stored file has: Hugging Face's Flax or TensorFlow classes'."""
Shape = tuple[int, ...]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transpose(array: np.ndarray) -> np.ndarray:
    return array.T


def _convolution(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _row(array: np.ndarray) -> np.ndarray:
    return array[None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one framework keeps a tensor: its leaf name, the way from the stored layout, and the way back.

    A leaf "" stands for the stored name's own.
    """

    leaf: str
    load: Callable[[np.ndarray], np.ndarray] = _same
    store: Callable[[np.ndarray], np.ndarray] = _same


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor. `axis`: the stored layout's output axis, along which fused tensors are split."""

    name: str
    flax: Layout
    torch: Layout
    axis: int = 0
    hf_flax: Layout = Layout("")
    hf_tf: Layout = Layout("")
    """The ways of these two lead from the stored layout only: `conversion.naming` goes back by leaf and rank."""

    def layout(self, framework: Framework) -> Layout:
        return self.flax if framework == "flax" else self.torch

    def dialect(self, dialect: Dialect) -> Layout:
        return self.hf_flax if dialect == "hf_flax" else self.hf_tf


KERNEL = Layout("kernel", _transpose, _transpose)
LINEAR = Rule("linear", KERNEL, Layout("weight"), hf_flax=KERNEL, hf_tf=KERNEL)
"""nn.Linear's (out, in)."""
CONV1D = Rule(
    "conv1d", Layout("kernel"), Layout("weight", _transpose, _transpose), -1, hf_flax=KERNEL, hf_tf=Layout("weight")
)
"""GPT-2's Conv1D, stored (in, out); Hugging Face's Flax class keeps it (out, in)."""
BIAS = Rule("bias", Layout("bias"), Layout("bias"))
CONV1D_BIAS = Rule("conv1d bias", Layout("bias"), Layout("bias"), hf_tf=Layout("bias", _row))
NORM = Rule("norm", Layout("scale"), Layout("weight"), hf_flax=Layout("scale"), hf_tf=Layout("gamma"))
NORM_BIAS = Rule("norm bias", Layout("bias"), Layout("bias"), hf_tf=Layout("beta"))
EMBEDDING = Rule(
    "embedding", Layout("embedding"), Layout("weight"), hf_flax=Layout("embedding"), hf_tf=Layout("embeddings")
)
WORD_EMBEDDING = Rule("word embedding", Layout("embedding"), Layout("weight"), hf_flax=Layout("embedding"))
"""BERT's and its family's, which TensorFlow's classes keep as a bare `weight`."""
PARAMETER = Rule("parameter", Layout(""), Layout(""))
"""A bare parameter; our path is its whole name."""


def patches(channels: int, height: int, width: int) -> Rule:
    """A patch convolution (D, C, h, w), in Flax a matrix (C*h*w, D) over flattened patches."""
    return Rule(
        "patches",
        Layout("kernel", lambda w: w.reshape(w.shape[0], -1).T, lambda k: k.T.reshape(-1, channels, height, width)),
        Layout("weight"),
        hf_flax=Layout("kernel", _convolution),
        hf_tf=Layout("kernel", _convolution),
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One stored tensor of `shape` and the parameters that it becomes, several where it is fused (q, k, v in one)."""

    stored: str
    paths: tuple[str, ...]
    rule: Rule
    shape: Shape

    def names(self, framework: Framework) -> tuple[str, ...]:
        """The parameters' names in a framework."""
        leaf = self.rule.layout(framework).leaf
        return tuple(f"{path}.{leaf}" if leaf else path for path in self.paths)

    def load(self, array: np.ndarray, framework: Framework) -> list[np.ndarray]:
        """The parameters, as views where the layout allows. Raises ValueError where the rank or split is impossible."""
        load = self.rule.layout(framework).load
        parts = [array] if len(self.paths) == 1 else np.split(array, len(self.paths), axis=self.rule.axis)
        return [load(part) for part in parts]

    def store(self, parameters: Iterable[np.ndarray], framework: Framework) -> np.ndarray:
        """The inverse of `load`."""
        store = self.rule.layout(framework).store
        parts = [store(parameter) for parameter in parameters]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.rule.axis)

    def load_lazily(self, tensor: Tensor, framework: Framework) -> list[Tensor]:
        """`load` of a tensor that may be Lazy: what stays one is made when it is used, what is split now."""
        load = self.rule.layout(framework).load
        if len(self.paths) == 1:
            return [mapped(load, tensor)]
        return list(self.load(np.asarray(tensor), framework))

    def store_lazily(self, parameters: Sequence[Tensor], framework: Framework) -> Tensor:
        """`store` of parameters that may be Lazy; what is fused is made when it is used."""
        if len(parameters) == 1:
            return mapped(self.rule.layout(framework).store, parameters[0])

        def make() -> np.ndarray:
            return self.store(map(np.asarray, parameters), framework)

        return Lazy(self.shape, parameters[0].dtype, make)

    def under(self, stored: str, path: str) -> "Row":
        """The row with prefixes before the stored name and our paths."""
        return dataclasses.replace(self, stored=stored + self.stored, paths=tuple(path + p for p in self.paths))


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A stored buffer that the config determines: read over, never written."""

    stored: str

    def under(self, stored: str, path: str) -> "Dropped":
        return Dropped(stored + self.stored)


@dataclasses.dataclass(frozen=True)
class Computed:
    """A stored buffer that the config determines and other libraries miss: read over, written with a whole model."""

    stored: str
    compute: Callable[[], np.ndarray]

    def under(self, stored: str, path: str) -> "Computed":
        return dataclasses.replace(self, stored=stored + self.stored)


@dataclasses.dataclass(frozen=True)
class Carried:
    """A stored tensor that decoding never uses: kept beside the parameters and written back."""

    stored: str
    shape: Shape
    std: float | None = None
    """Spread of its normal initialisation in a new model; None where new models have no such tensor."""
    to: str | None = None
    """The tensor that it stands in for where only it is there, as a `Tied` does; it may differ from that one."""
    mean: float = 0.0
    rule: Rule = PARAMETER
    """Its layout in other formats."""

    @property
    def foreign(self) -> bool:
        """Whether new models have no such tensor."""
        return self.std is None

    def under(self, stored: str, path: str) -> "Carried":
        return dataclasses.replace(self, stored=stored + self.stored, to=self.to and stored + self.to)


@dataclasses.dataclass(frozen=True)
class Tied:
    """A second stored copy of another tensor: must equal it where present, stands in for it where only it is there."""

    stored: str
    to: str
    exact: bool = True
    """False where it may differ, and is passed over then."""
    expected: bool = True
    """Whether a file of PyTorch's own has it, in the same memory."""

    def under(self, stored: str, path: str) -> "Tied":
        return dataclasses.replace(self, stored=stored + self.stored, to=stored + self.to)


AnyRow = Row | Dropped | Computed | Carried | Tied
Rows = Iterator[AnyRow]


def parameter(stored: str, path: str, *shape: int) -> Rows:
    """A bare parameter."""
    yield Row(stored, (path,), PARAMETER, shape)


def embedding(stored: str, path: str, entries: int, width: int, rule: Rule = EMBEDDING) -> Rows:
    """An embedding table (entries, width)."""
    yield Row(f"{stored}.weight", (path,), rule, (entries, width))


def norm(stored: str, path: str, width: int) -> Rows:
    """A layer normalisation's weight and bias."""
    yield Row(f"{stored}.weight", (path,), NORM, (width,))
    yield Row(f"{stored}.bias", (path,), NORM_BIAS, (width,))


def linear(stored: str, path: str | Sequence[str], width_in: int, width_out: int, *, bias: bool = True) -> Rows:
    """A linear map's weight and bias; several paths where it is fused, `width_out` is theirs together."""
    paths = (path,) if isinstance(path, str) else tuple(path)
    yield Row(f"{stored}.weight", paths, LINEAR, (width_out, width_in))
    if bias:
        yield Row(f"{stored}.bias", paths, BIAS, (width_out,))


def conv1d(stored: str, path: str | Sequence[str], width_in: int, width_out: int) -> Rows:
    """GPT-2's Conv1D, weight and bias; otherwise as `linear`."""
    paths = (path,) if isinstance(path, str) else tuple(path)
    yield Row(f"{stored}.weight", paths, CONV1D, (width_in, width_out))
    yield Row(f"{stored}.bias", paths, CONV1D_BIAS, (width_out,))


def convolution(stored: str, path: str, channels: int, patch: tuple[int, int], width: int) -> Rows:
    """A convolution over patches that do not overlap, weight and bias."""
    yield Row(f"{stored}.weight", (path,), patches(channels, *patch), (width, channels, *patch))
    yield Row(f"{stored}.bias", (path,), BIAS, (width,))


def carried_linear(stored: str, width_in: int, width_out: int, std: float | None = None) -> Rows:
    """A carried linear map; `std` as a `Carried`'s."""
    yield Carried(f"{stored}.weight", (width_out, width_in), std, rule=LINEAR)
    yield Carried(f"{stored}.bias", (width_out,), None if std is None else 0.0)


def carried_norm(stored: str, width: int) -> Rows:
    """A carried layer normalisation."""
    yield Carried(f"{stored}.weight", (width,), std=0.0, mean=1.0, rule=NORM)
    yield Carried(f"{stored}.bias", (width,), std=0.0, rule=NORM_BIAS)


def under(rows: Iterable[AnyRow], stored: str, path: str) -> Rows:
    """All rows with prefixes before their stored names and our paths."""
    for row in rows:
        yield row.under(stored, path)
