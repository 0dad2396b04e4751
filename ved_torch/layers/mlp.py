"""The feed-forward layer."""

from torch import Tensor, nn

from ved_torch.layers.activations import ACTIVATIONS
from ved_torch.layers.build import Builder, Init


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
        return self.down(self.dropout(self.activation(self.up(x_BTD))))


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: str, make: Builder) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = make.linear(width, hidden)
        self.up = make.linear(width, hidden)
        self.down = make.linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
