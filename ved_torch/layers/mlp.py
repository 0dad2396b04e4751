"""The feed-forward layer."""

from collections.abc import Callable

from torch import Tensor, nn

from ved_torch.layers.activations import ACTIVATIONS
from ved_torch.layers.build import Builder, Init
from ved_torch.layers.linear import Linear
from ved_torch.layers.slicing import in_slices, sliceable


class Mlp(nn.Module):
    """down(activation(up(x)))."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        make: Builder,
        *,
        dropout: float = 0.0,
        residual_init: Init | None = None,
    ) -> None:
        """`dropout`: on the hidden activations. `residual_init`: of the second layer, if not the builder's."""
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = make.linear(width, hidden)
        self.dropout = make.dropout(dropout)
        self.down = make.initialised(residual_init).linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return self.down(self.dropout(self.activation(self.up(x))))

        return by_rows(run, x_BTD, self.up, self.down)


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: str, make: Builder) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = make.linear(width, hidden)
        self.up = make.linear(width, hidden)
        self.down = make.linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return self.down(self.activation(self.gate(x)) * self.up(x))

        return by_rows(run, x_BTD, self.gate, self.up, self.down)


def by_rows(run: Callable[[Tensor], Tensor], x: Tensor, *linears: Linear) -> Tensor:
    """run(x), the hidden activations of many rows slice by slice; the first of `linears` makes them."""
    if not sliceable(x, linears):
        return run(x)
    x_RD = x.reshape(-1, x.shape[-1])
    y_RO = in_slices(lambda some: run(x_RD[some]), len(x_RD), linears[0].out_features, linears)
    return y_RO.reshape(*x.shape[:-1], y_RO.shape[-1])
