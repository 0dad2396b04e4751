"""Swin, Donut's Swin, and Swin V2."""

import functools

import numpy as np

from conversion.rules import Carried, Computed, Dropped, Rows, convolution, linear, norm, parameter
from ved_core.configs import SwinConfig, Swinv2Config
from ved_core.configs.fields import as_pair
from ved_core.grids import relative_index

PREFIXES = ("", "swin.", "donut.", "swinv2.")
POSITION_WIDTH = 512
"""Of the network that gives Swin V2 its position biases."""


def rows(cfg: SwinConfig) -> Rows:
    """The encoder's tensors, stage by stage."""
    projection = "embeddings.patch_embeddings.projection"
    yield from convolution(projection, "patches", cfg.num_channels, as_pair(cfg.patch_size), cfg.embed_dim)
    yield from norm("embeddings.norm", "patch_norm", cfg.embed_dim)
    if cfg.use_absolute_embeddings:
        height, width = cfg.grid
        yield from parameter("embeddings.position_embeddings", "positions", 1, height * width, cfg.embed_dim)
    yield Carried("embeddings.mask_token", (1, 1, cfg.embed_dim))
    for stage, blocks in enumerate(cfg.depths):
        for i in range(blocks):
            yield from block_rows(cfg, stage, f"encoder.layers.{stage}.blocks.{i}", f"stages.{stage}.blocks.{i}")
        if stage + 1 < len(cfg.depths):
            width, normed = cfg.widths[stage], (2 if isinstance(cfg, Swinv2Config) else 4) * cfg.widths[stage]
            yield from norm(f"encoder.layers.{stage}.downsample.norm", f"stages.{stage}.merge.norm", normed)
            reduction = f"encoder.layers.{stage}.downsample.reduction"
            yield from linear(reduction, f"stages.{stage}.merge.down", 4 * width, 2 * width, bias=False)
    if cfg.has_last_norm:
        yield from norm("layernorm", "norm", cfg.hidden_size)


def window_index(window: int) -> np.ndarray:
    """Where a window's table holds each pair's offset, as torch keeps it."""
    return relative_index(window, window).astype(np.int64)


def block_rows(cfg: SwinConfig, stage: int, layer: str, block: str) -> Rows:
    """One block's tensors."""
    width, heads = cfg.widths[stage], cfg.num_heads[stage]
    hidden = int(cfg.mlp_ratio * width)
    attention = f"{layer}.attention.self"
    yield from norm(f"{layer}.layernorm_before", f"{block}.norm1", width)
    yield from linear(f"{attention}.query", f"{block}.attn.q", width, width, bias=cfg.qkv_bias)
    yield from linear(f"{attention}.key", f"{block}.attn.k", width, width, bias=cfg.key_bias)
    yield from linear(f"{attention}.value", f"{block}.attn.v", width, width, bias=cfg.qkv_bias)
    yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out", width, width)
    if isinstance(cfg, Swinv2Config):
        yield from parameter(f"{attention}.logit_scale", f"{block}.attn.logit_scale", heads, 1, 1)
        yield from linear(f"{attention}.continuous_position_bias_mlp.0", f"{block}.bias.up", 2, POSITION_WIDTH)
        second = f"{attention}.continuous_position_bias_mlp.2"
        yield from linear(second, f"{block}.bias.down", POSITION_WIDTH, heads, bias=False)
        yield Dropped(f"{attention}.relative_coords_table")
        yield Dropped(f"{attention}.relative_position_index")
    else:
        offsets = (2 * cfg.window_size - 1) ** 2
        yield from parameter(f"{attention}.relative_position_bias_table", f"{block}.bias.table", offsets, heads)
        yield Computed(f"{attention}.relative_position_index", functools.partial(window_index, cfg.window_size))
    yield from norm(f"{layer}.layernorm_after", f"{block}.norm2", width)
    yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up", width, hidden)
    yield from linear(f"{layer}.output.dense", f"{block}.mlp.down", hidden, width)
