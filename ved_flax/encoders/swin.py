"""Swin (arXiv:2103.14030) and Donut's variant of it (arXiv:2111.15664)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import SwinConfig
from ved_core.configs.fields import as_pair
from ved_core.errors import InputError
from ved_core.grids import fit_window
from ved_flax.encoders.base import Encoder
from ved_flax.layers.attention import Attention
from ved_flax.layers.blocks import Blocks
from ved_flax.layers.build import Builder
from ved_flax.layers.mlp import Mlp
from ved_flax.layers.patches import Patches
from ved_flax.layers.positions import resize_grid
from ved_flax.layers.relative import WindowBias
from ved_flax.layers.windows import Grid, Windows, attend_windows, merge_grid
from ved_flax.outputs import EncoderOutput, Record

EPSILON = 1e-5
"""Of the normalisations outside blocks, whatever the config's layer_norm_eps is."""


class SwinBlock(nnx.Module):
    """Pre-norm attention within windows, and feed-forward."""

    MASKED = -100.0

    def __init__(self, cfg: SwinConfig, stage: int, drop_path: float, make: Builder) -> None:
        width, heads = cfg.widths[stage], cfg.num_heads[stage]
        self.norm1 = make.norm(width, cfg.layer_norm_eps)
        self.attn = Attention(width, heads, make, qkv_bias=cfg.qkv_bias, dropout=cfg.attention_probs_dropout_prob)
        self.bias = WindowBias(cfg.window_size, heads, make)
        self.norm2 = make.norm(width, cfg.layer_norm_eps)
        self.mlp = Mlp(width, int(cfg.mlp_ratio * width), cfg.hidden_act, make)
        self.dropout = make.dropout(cfg.hidden_dropout_prob)
        self.drop_path = make.drop_path(drop_path)

    def __call__(
        self, x_BPD: jax.Array, rngs: nnx.Rngs | None, *, windows: Windows, need_weights: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        bias = self.bias(windows.size)
        attended, weights = attend_windows(self.attn, self.norm1(x_BPD), windows, bias, self.MASKED, rngs, need_weights)
        x_BPD = x_BPD + self.drop_path(self.dropout(attended, rngs=rngs), rngs=rngs)
        # Only attention is skipped for whole images: transformers trains Swin so.
        return x_BPD + self.dropout(self.mlp(self.norm2(x_BPD), rngs), rngs=rngs), weights


class SwinMerge(nnx.Module):
    """Four neighbours to one token of twice the width, normalised first."""

    def __init__(self, width: int, make: Builder) -> None:
        self.norm = make.norm(4 * width, EPSILON)
        self.down = make.linear(4 * width, 2 * width, bias=False)

    def __call__(self, x_BPD: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
        x, grid = merge_grid(x_BPD, grid)
        return self.down(self.norm(x)), grid


class SwinStage(nnx.Module):
    """Blocks on one grid, every second with shifted windows; then the merge to the next."""

    def __init__(self, blocks: Sequence[nnx.Module], merge: nnx.Module | None, window: int, side: int | None) -> None:
        """`side`: the length that windows must not exceed, if not the shorter side of each image's grid."""
        self.blocks: Any = Blocks(blocks)
        self.merge: Any = merge
        self.window = window
        self.side = side

    def __call__(
        self, x_BPD: jax.Array, grid: Grid, rngs: nnx.Rngs | None, need_weights: bool
    ) -> tuple[jax.Array, Grid, jax.Array | None]:
        """Returns the tokens, their grid, and, if wanted, the last block's attention weights (B * W, N, S, S)."""
        size, shift = fit_window(self.side or min(grid), self.window)
        plain, shifted = Windows(grid, size, 0), Windows(grid, size, shift)
        for i, block in enumerate(self.blocks):
            windows = shifted if i % 2 else plain
            wanted = need_weights and block is self.blocks[-1]
            x_BPD, weights = self.blocks.run(block, x_BPD, rngs, windows=windows, need_weights=wanted)
        if self.merge is not None:
            x_BPD, grid = self.merge(x_BPD, grid)
        return x_BPD, grid, None if weights is None else weights.reshape(-1, *weights.shape[2:])


class SwinEncoder(Encoder):
    """Image of any size to tokens, one for a square of `patch_size * 2**(stages - 1)` pixels."""

    block: ClassVar[Callable[..., nnx.Module]] = SwinBlock
    merge: ClassVar[Callable[..., nnx.Module]] = SwinMerge

    def __init__(self, cfg: SwinConfig, make: Builder) -> None:
        super().__init__(cfg)
        make = make.initialised(normal(cfg.initializer_range))
        self.grid = cfg.grid
        self.dtype = make.dtype
        self.patches = Patches(cfg.num_channels, as_pair(cfg.patch_size), cfg.embed_dim, make, pad=True)
        self.patch_norm = make.norm(cfg.embed_dim, EPSILON)
        patches = self.grid[0] * self.grid[1]
        self.positions = make.parameter(1, patches, cfg.embed_dim) if cfg.use_absolute_embeddings else None
        self.dropout = make.dropout(cfg.hidden_dropout_prob)
        self.stages = nnx.List([self.stage(cfg, i, make) for i in range(cfg.num_layers)])
        self.norm = make.norm(cfg.hidden_size, cfg.layer_norm_eps) if cfg.has_last_norm else None

    def stage(self, cfg: SwinConfig, index: int, make: Builder) -> SwinStage:
        """One stage; the last merges nothing."""
        blocks = [self.block(cfg, index, rate, make) for rate in cfg.drop_paths[index]]
        merge = self.merge(cfg.widths[index], make) if index + 1 < cfg.num_layers else None
        return SwinStage(blocks, merge, cfg.window_size, cfg.window_sides[index])

    def check_size(self, height: int, width: int, interpolate_pos_encoding: bool) -> None:
        grid = self.patches.grid(height, width)
        if self.positions is not None and grid != self.grid and not interpolate_pos_encoding:
            raise InputError(
                f"pixel_values are {height} x {width}, {grid[0]} x {grid[1]} patches, the checkpoint's positions are "
                f"for {self.grid[0]} x {self.grid[1]}: resize the images, or pass interpolate_pos_encoding=True"
            )

    def embed(self, pixels_BCHW: jax.Array, interpolate_pos_encoding: bool) -> tuple[jax.Array, Grid]:
        """Patches with positions, and their grid. Raises InputError as check_size does."""
        x = self.patch_norm(self.patches(pixels_BCHW.astype(self.dtype)))
        height, width = pixels_BCHW.shape[2:]
        grid = self.patches.grid(height, width)
        self.check_size(height, width, interpolate_pos_encoding)
        if self.positions is None:
            return x, grid
        return x + resize_grid(self.positions[...][0], self.grid, grid).astype(x.dtype), grid

    def __call__(
        self,
        pixels_BCHW: jax.Array,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> EncoderOutput:
        """`hidden_states`: the embeddings and every stage's output; `attentions`: of each stage's last block, windows
        counted with the batch, (B * W, N, S, S)."""
        record = Record(output_hidden_states, output_attentions)
        x, grid = self.embed(pixels_BCHW, interpolate_pos_encoding)
        x = self.dropout(x, rngs=rngs)
        record.state(x)
        for stage in self.stages:
            x, grid, weights = stage(x, grid, rngs, record.need_weights)
            record.state(x)
            record.weights(weights)
        x = x if self.norm is None else self.norm(x)
        return EncoderOutput(x, record.hidden_states, record.attentions())
