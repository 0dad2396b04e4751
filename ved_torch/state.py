"""A module's parameters as a flat {dotted name: array}, the vocabulary of the conversion tables."""

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from conversion import tensors as stored
from conversion.tensors import Lazy

M = TypeVar("M", bound=nn.Module)

ONLY_HERE: dict[torch.dtype, tuple[torch.dtype, type]] = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}
"""Dtypes that NumPy has from ml_dtypes, and the integers of their size that both libraries know."""


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point dtype from itself or its name. Raises ValueError."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype = {dtype!r} should be a floating-point dtype of torch, or its name")
    return found


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's values on the host, of the same dtype and in the same memory where it is there already."""
    tensor = tensor.detach().cpu()
    if tensor.dtype not in ONLY_HERE:
        return tensor.numpy()
    bits, dtype = ONLY_HERE[tensor.dtype]
    return tensor.contiguous().view(bits).numpy().view(dtype)


def to_tensor(array: stored.Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of the array on the host, rounded to `dtype`."""
    tensor = torch.empty(array.shape, dtype=dtype, device="cpu")
    np.copyto(to_numpy(tensor), np.asarray(array), casting="unsafe")
    return tensor


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, of an abstract module too."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def tensors(module: nn.Module) -> dict[str, Lazy]:
    """Every parameter, fetched to the host when it is used."""
    return {
        name: Lazy(tuple(parameter.shape), numpy_dtype(parameter.dtype), functools.partial(to_numpy, parameter))
        for name, parameter in module.named_parameters()
    }


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """NumPy's dtype of the same numbers."""
    return to_numpy(torch.empty(0, dtype=dtype, device="cpu")).dtype


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Every parameter, fetched to the host."""
    return {name: to_numpy(parameter) for name, parameter in module.named_parameters()}


def abstract(make: Callable[[], M]) -> M:
    """The module that `make` builds, on the meta device: nothing is computed or allocated."""
    with torch.device("meta"):
        return make()


def placed(values: Mapping[str, stored.Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The values on `device`: one copy, and no other."""
    return stored.each(lambda array: to_tensor(array, dtype).to(device), values)


def fill(module: M, values: Mapping[str, stored.Tensor], dtype: torch.dtype, device: torch.device | None) -> M:
    """Give an abstract module its parameters, on `device` or torch's default one."""
    device = torch.get_default_device() if device is None else device
    wanted = {name: values[name] for name in shapes(module)}
    module.load_state_dict(placed(wanted, dtype, device), assign=True)
    return module.to(device)
