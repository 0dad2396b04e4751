"""The two decoder layers, pre-norm and post-norm, that every family is made of."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from ved_flax.layers import cache as caches
from ved_flax.layers.attention import Attention
from ved_flax.layers.build import Builder
from ved_flax.layers.cache import KeyValue
from ved_flax.layers.mlp import Mlp

BlockResult = tuple[jax.Array, KeyValue, jax.Array | None, jax.Array | None]
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
    residual_init: Initializer | None = None


class DecoderBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each with a norm; subclasses say where the norms stand."""

    def __init__(self, spec: BlockSpec, make: Builder) -> None:
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
    def __call__(
        self,
        x_BTD: jax.Array,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: jax.Array | int,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
        *,
        need_weights: bool = False,
        tokens: int | None = None,
    ) -> BlockResult:
        """One layer. `memory`: the cache of earlier tokens' keys and values, filled up to `index`; `bias`: of the
        self-attention's scores; `tokens`: how many of x are remembered, if not all."""

    def _attend_self(
        self,
        x_BTD: jax.Array,
        memory: KeyValue | None,
        index: jax.Array | int,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
        need_weights: bool,
        tokens: int | None,
    ) -> tuple[jax.Array, KeyValue, jax.Array | None]:
        """Self-attention over the new tokens, or over `memory` with the new tokens written into it at `index`."""
        kv = self.attn.keys_values(x_BTD)
        if memory is not None:
            kv = caches.write(memory, kv, jnp.asarray(index), tokens)
        attended, weights = self.attn(x_BTD, caches.read(kv), bias, rngs, need_weights=need_weights)
        return self.dropout(attended, rngs=rngs), kv, weights


class PreNormBlock(DecoderBlock):
    """x + sublayer(norm(x)): GPT-2, mBART."""

    def __call__(
        self,
        x_BTD: jax.Array,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: jax.Array | int,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
        *,
        need_weights: bool = False,
        tokens: int | None = None,
    ) -> BlockResult:
        attended, kv, weights = self._attend_self(self.norm1(x_BTD), memory, index, bias, rngs, need_weights, tokens)
        x_BTD = x_BTD + attended
        attended, cross_weights = self.cross_attn(
            self.norm_cross(x_BTD), cross_kv, rngs=rngs, need_weights=need_weights
        )
        x_BTD = x_BTD + self.dropout(attended, rngs=rngs)
        x_BTD = x_BTD + self.dropout(self.mlp(self.norm2(x_BTD), rngs), rngs=rngs)
        return x_BTD, kv, weights, cross_weights


class PostNormBlock(DecoderBlock):
    """norm(x + sublayer(x)): BERT, BART, TrOCR."""

    def __call__(
        self,
        x_BTD: jax.Array,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: jax.Array | int,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
        *,
        need_weights: bool = False,
        tokens: int | None = None,
    ) -> BlockResult:
        attended, kv, weights = self._attend_self(x_BTD, memory, index, bias, rngs, need_weights, tokens)
        x_BTD = self.norm1(x_BTD + attended)
        attended, cross_weights = self.cross_attn(x_BTD, cross_kv, rngs=rngs, need_weights=need_weights)
        x_BTD = self.norm_cross(x_BTD + self.dropout(attended, rngs=rngs))
        x_BTD = self.norm2(x_BTD + self.dropout(self.mlp(x_BTD, rngs), rngs=rngs))
        return x_BTD, kv, weights, cross_weights
