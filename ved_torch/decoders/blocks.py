"""The two decoder layers, pre-norm and post-norm, that every family is made of."""

import abc
import dataclasses

from torch import Tensor, nn

from ved_torch.layers import cache as caches
from ved_torch.layers.attention import Attention
from ved_torch.layers.build import Builder, Init
from ved_torch.layers.cache import KeyValue
from ved_torch.layers.mlp import Mlp

BlockResult = tuple[Tensor, KeyValue, Tensor | None, Tensor | None]
"""x (B, T, D), the keys and values to remember, and the weights of self- and cross-attention where wanted."""


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What a family's config says of one layer. `dropout` stands behind each sublayer; `kv_width`: of the image tokens,
    if not `width`; `scale`: of attention scores, 1/sqrt(head width) by default; `residual_init`: of the projections
    into the residual stream, if not the builder's."""

    width: int
    heads: int
    mlp_width: int
    activation: str
    epsilon: float
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    kv_width: int | None = None
    scale: float | None = None
    residual_init: Init | None = None


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with a norm; subclasses say where the norms stand."""

    def __init__(self, spec: BlockSpec, make: Builder) -> None:
        super().__init__()
        self.norm1 = make.norm(spec.width, spec.epsilon)
        self.attn = self._attention(spec, make, None)
        self.norm_cross = make.norm(spec.width, spec.epsilon)
        self.cross_attn = self._attention(spec, make, spec.kv_width)
        self.norm2 = make.norm(spec.width, spec.epsilon)
        self.mlp = Mlp(
            spec.width,
            spec.mlp_width,
            spec.activation,
            make,
            dropout=spec.activation_dropout,
            residual_init=spec.residual_init,
        )
        self.dropout = make.dropout(spec.dropout)

    @staticmethod
    def _attention(spec: BlockSpec, make: Builder, kv_width: int | None) -> Attention:
        return Attention(
            spec.width,
            spec.heads,
            make,
            kv_width=kv_width,
            scale=spec.scale,
            dropout=spec.attention_dropout,
            residual_init=spec.residual_init,
        )

    @abc.abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: int,
        bias: Tensor | None,
        need_weights: bool,
    ) -> BlockResult:
        """One layer. `memory`: the cache of earlier tokens' keys and values, filled up to `index`; `bias`: of the
        self-attention's scores."""

    def _attend_self(
        self, x_BTD: Tensor, memory: KeyValue | None, index: int, bias: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, KeyValue, Tensor | None]:
        """Self-attention over the new tokens, or over `memory` with the new tokens written into it at `index`."""
        kv = self.attn.keys_values(x_BTD)
        if memory is not None:
            kv = caches.write(memory, kv, index)
        attended, weights = self.attn(x_BTD, kv.first(index + x_BTD.shape[1]), bias, need_weights)
        return self.dropout(attended), kv, weights


class PreNormBlock(DecoderBlock):
    """x + sublayer(norm(x)): GPT-2, mBART."""

    def forward(
        self,
        x_BTD: Tensor,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: int,
        bias: Tensor | None,
        need_weights: bool,
    ) -> BlockResult:
        attended, kv, weights = self._attend_self(self.norm1(x_BTD), memory, index, bias, need_weights)
        x_BTD = x_BTD + attended
        attended, cross_weights = self.cross_attn(self.norm_cross(x_BTD), cross_kv, need_weights=need_weights)
        x_BTD = x_BTD + self.dropout(attended)
        x_BTD = x_BTD + self.dropout(self.mlp(self.norm2(x_BTD)))
        return x_BTD, kv, weights, cross_weights


class PostNormBlock(DecoderBlock):
    """norm(x + sublayer(x)): BERT, BART, TrOCR."""

    def forward(
        self,
        x_BTD: Tensor,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: int,
        bias: Tensor | None,
        need_weights: bool,
    ) -> BlockResult:
        attended, kv, weights = self._attend_self(x_BTD, memory, index, bias, need_weights)
        x_BTD = self.norm1(x_BTD + attended)
        attended, cross_weights = self.cross_attn(x_BTD, cross_kv, need_weights=need_weights)
        x_BTD = self.norm_cross(x_BTD + self.dropout(attended))
        x_BTD = self.norm2(x_BTD + self.dropout(self.mlp(x_BTD)))
        return x_BTD, kv, weights, cross_weights
