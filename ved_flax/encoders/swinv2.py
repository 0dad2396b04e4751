"""Swin V2 (arXiv:2111.09883)."""

import jax
from flax import nnx

from ved_core.configs import Swinv2Config
from ved_flax.encoders.swin import EPSILON, SwinEncoder
from ved_flax.layers.attention import CosineAttention
from ved_flax.layers.build import Builder
from ved_flax.layers.mlp import Mlp
from ved_flax.layers.relative import ContinuousBias
from ved_flax.layers.windows import Grid, Windows, attend_windows, merge_grid


class Swinv2Block(nnx.Module):
    """Cosine attention within windows, and feed-forward, each normalised before it is added."""

    MASKED = -200.0
    """Twice Swin's: cosines are multiplied by up to 100."""

    def __init__(self, cfg: Swinv2Config, stage: int, drop_path: float, make: Builder) -> None:
        width, heads = cfg.widths[stage], cfg.num_heads[stage]
        self.attn = CosineAttention(width, heads, make, qkv_bias=cfg.qkv_bias, dropout=cfg.attention_probs_dropout_prob)
        self.bias = ContinuousBias(cfg.pretrained_window_sizes[stage], heads, make)
        self.norm1 = make.norm(width, cfg.layer_norm_eps)
        self.mlp = Mlp(width, int(cfg.mlp_ratio * width), cfg.hidden_act, make)
        self.norm2 = make.norm(width, cfg.layer_norm_eps)
        self.dropout = make.dropout(cfg.hidden_dropout_prob)
        self.drop_path = make.drop_path(drop_path)

    def __call__(
        self, x_BPD: jax.Array, rngs: nnx.Rngs | None, *, windows: Windows, need_weights: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        bias = self.bias(windows.size)
        attended, weights = attend_windows(self.attn, x_BPD, windows, bias, self.MASKED, rngs, need_weights)
        x_BPD = x_BPD + self.drop_path(self.norm1(self.dropout(attended, rngs=rngs)), rngs=rngs)
        hidden = self.dropout(self.mlp(x_BPD, rngs), rngs=rngs)
        return x_BPD + self.drop_path(self.norm2(hidden), rngs=rngs), weights


class Swinv2Merge(nnx.Module):
    """Four neighbours to one token of twice the width, normalised last."""

    def __init__(self, width: int, make: Builder) -> None:
        self.down = make.linear(4 * width, 2 * width, bias=False)
        self.norm = make.norm(2 * width, EPSILON)

    def __call__(self, x_BPD: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
        x, grid = merge_grid(x_BPD, grid)
        return self.norm(self.down(x)), grid


class Swinv2Encoder(SwinEncoder):
    """Image of any size to tokens, as Swin's."""

    block = Swinv2Block
    merge = Swinv2Merge
