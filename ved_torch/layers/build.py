"""`Builder`: makes leaf modules that share one initialisation and one dtype."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ved_torch.layers.drop_path import DropPath
from ved_torch.layers.linear import Linear

Init = Callable[..., Any]
"""Fills a tensor in place: `init(tensor, generator=...)`. Picklable, as models that keep one are."""
M = TypeVar("M", bound=nn.Module)


def normal(std: float) -> Init:
    """Normally distributed values."""
    return partial(nn.init.normal_, std=std)


def constant(value: float) -> Init:
    """The same value everywhere."""
    return partial(_fill, value)


def _fill(value: float, tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return nn.init.constant_(tensor, value)


def zero_row(tensor: Tensor, init: Init, row: int, generator: torch.Generator | None = None) -> None:
    """`init` with one row of the table at 0. Given as `partial(zero_row, init=..., row=...)`."""
    init(tensor, generator=generator)
    with torch.no_grad():
        tensor[row] = 0


def zeros(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return nn.init.zeros_(tensor)


class Embedding(nn.Embedding):
    """A table that its `Builder` initialises."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own draw, on the meta device, brings a second's worth of imports along."""


@dataclasses.dataclass(frozen=True)
class Builder:
    """`generator`: of random values, torch's own where None. Modules are made on torch's default device; on the meta
    device nothing is allocated or drawn."""

    init: Init = normal(0.02)
    generator: torch.Generator | None = None
    dtype: torch.dtype = torch.float32

    def initialised(self, init: Init | None) -> "Builder":
        """The same builder with another initialisation of weights and embeddings, if one is given."""
        return self if init is None else dataclasses.replace(self, init=init)

    def linear(self, width_in: int, width_out: int, *, bias: bool = True) -> Linear:
        """x @ weight.T + bias; zero bias."""
        return self.leaf(Linear, width_in, width_out, bias=bias)

    def embedding(self, entries: int, width: int, *, padding: int | None = None) -> nn.Embedding:
        """A table (entries, width); row `padding` begins as zeros and learns nothing from being looked up."""
        make = self if padding is None else self.initialised(partial(zero_row, init=self.init, row=padding))
        return make.leaf(Embedding, entries, width, padding_idx=padding)

    def leaf(self, cls: type[M], *args: Any, **kwargs: Any) -> M:
        """A module with a `weight`, and perhaps a `bias`, initialised once: not in torch's own way first."""
        module = cls(*args, **kwargs, device="meta", dtype=self.dtype)
        if (device := torch.get_default_device()).type == "meta":
            return module  # to_empty, of tensors there, brings SymPy along
        module.to_empty(device=device)
        self.fill(module.weight, self.init)
        if getattr(module, "bias", None) is not None:
            self.fill(module.bias, zeros)
        return module

    def norm(self, width: int, epsilon: float) -> nn.LayerNorm:
        """Layer normalisation, ones and zeros at first."""
        return nn.LayerNorm(width, eps=epsilon, dtype=self.dtype)

    def parameter(self, *shape: int, init: Init = zeros) -> nn.Parameter:
        """A bare parameter."""
        parameter = nn.Parameter(torch.empty(shape, dtype=self.dtype))
        self.fill(parameter, init)
        return parameter

    def dropout(self, rate: float) -> nn.Dropout:
        """Active in training mode."""
        return nn.Dropout(rate)

    def drop_path(self, rate: float) -> DropPath:
        """Active in training mode."""
        return DropPath(rate)

    def fill(self, tensor: Any, init: Init) -> None:
        """Initialise in place, unless there is nothing behind the tensor."""
        if not tensor.is_meta:
            init(tensor, generator=self.generator)
