"""`Linear`: nn.Linear on oneDNN's kernels, where torch itself takes slower ones."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """x @ weight.T + bias."""

    blocked: Tensor | None = None
    """The weight in the order in which oneDNN reads it, while a `Packing` or `reordered_for_now` lends it."""

    def reset_parameters(self) -> None:
        """Nothing: whoever makes one gives it its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias, self.blocked)


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, blocked: Tensor | None = None) -> Tensor:
    """x (..., I) @ weight.T + bias. `blocked`: the same weight as `reordered` made it.

    F.linear calls MKL for float32, which on AMD processors took 2 to 5 times as long as oneDNN, for one row and for
    thousands. oneDNN's product has no gradient.
    """
    if not suits(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    weight = weight_OI if blocked is None else blocked
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias_O, "none", [], ""))


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is one that oneDNN computes faster: of plain float32 tensors in a CPU's memory, without
    gradients, not rounded by autocast and not compiled."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(weight) in PLAIN
        and type(x) is Tensor
        and x.dtype is weight.dtype is torch.float32
        and x.device == weight.device == CPU
        and AVAILABLE
        and not torch.is_autocast_enabled("cpu")
    )


def reordered(weight_OI: Tensor) -> Tensor:
    """A copy of the weight in the order in which oneDNN reads it: no product has to reorder it again."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach()))


@contextlib.contextmanager
def reordered_for_now(linears: Iterable[Linear]) -> Iterator[None]:
    """Weights in oneDNN's order as long as this lasts, where they are not already: for products that suit it, and with
    weights that do not change."""
    lent = [linear for linear in linears if linear.blocked is None]
    for linear in lent:
        linear.blocked = reordered(linear.weight)
    try:
        yield
    finally:
        for linear in lent:
            linear.blocked = None


PLAIN = (Tensor, nn.Parameter)
"""Quantised and distributed weights are subclasses, with products of their own."""
CPU = torch.device("cpu")
AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
"""torch's builds for x86 have both: torch.compile's code calls them."""
