"""Layers of the encoders of one width throughout."""

import jax
from flax import nnx
from jax.nn.initializers import constant

from ved_core.configs import PlainEncoderConfig
from ved_flax.layers.attention import Attention
from ved_flax.layers.build import Builder
from ved_flax.layers.mlp import GatedMlp, Mlp


class EncoderBlock(nnx.Module):
    """Pre-norm attention and feed-forward; what each adds may be scaled, and skipped for whole images in training."""

    def __init__(self, cfg: PlainEncoderConfig, index: int, make: Builder) -> None:
        width = cfg.hidden_size
        self.norm1 = make.norm(width, cfg.layer_norm_eps)
        self.attn = Attention(
            width,
            cfg.num_attention_heads,
            make,
            qkv_bias=cfg.query_bias,
            k_bias=cfg.key_bias,
            dropout=cfg.attention_probs_dropout_prob,
        )
        self.norm2 = make.norm(width, cfg.layer_norm_eps)
        self.mlp: Mlp | GatedMlp
        if cfg.gated_mlp:
            self.mlp = GatedMlp(width, cfg.mlp_size, "silu", make)
        else:
            self.mlp = Mlp(width, cfg.mlp_size, cfg.hidden_act, make)
        self.dropout = make.dropout(cfg.block_dropout)
        self.drop_path = make.drop_path(cfg.drop_paths[index])
        scale = cfg.layer_scale
        self.scale1 = None if scale is None else make.parameter(width, init=constant(scale))
        self.scale2 = None if scale is None else make.parameter(width, init=constant(scale))

    def added(self, x_BPD: jax.Array, scale: nnx.Param | None, rngs: nnx.Rngs | None) -> jax.Array:
        """What one half adds to the residual, from what it computed."""
        x = self.dropout(x_BPD, rngs=rngs)
        x = x if scale is None else x * scale[...].astype(x.dtype)
        return self.drop_path(x, rngs=rngs)

    def __call__(
        self,
        x_BPD: jax.Array,
        bias: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
        *,
        need_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        y = self.norm1(x_BPD)
        attended, weights = self.attn(y, self.attn.keys_values(y), bias, rngs, need_weights=need_weights)
        x_BPD = x_BPD + self.added(attended, self.scale1, rngs)
        return x_BPD + self.added(self.mlp(self.norm2(x_BPD), rngs), self.scale2, rngs), weights
