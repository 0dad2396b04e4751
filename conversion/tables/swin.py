"""Swin, Donut's Swin, and Swin V2."""

import functools

import numpy as np

from conversion.rules import Carried, Computed, Dropped, Rows, linear, norm, parameter, patches
from ved_core.configs import SwinConfig, Swinv2Config
from ved_core.configs.fields import as_pair
from ved_core.grids import relative_index

PREFIXES = ("", "swin.", "donut.", "swinv2.")


def rows(cfg: SwinConfig) -> Rows:
    """The encoder's tensors, stage by stage."""
    rule = patches(cfg.num_channels, *as_pair(cfg.patch_size))
    yield from linear("embeddings.patch_embeddings.projection", "patches", rule=rule)
    yield from norm("embeddings.norm", "patch_norm")
    if cfg.use_absolute_embeddings:
        yield from parameter("embeddings.position_embeddings", "positions")
    yield Carried("embeddings.mask_token", (1, 1, cfg.embed_dim))
    for stage, blocks in enumerate(cfg.depths):
        for i in range(blocks):
            yield from block_rows(cfg, f"encoder.layers.{stage}.blocks.{i}", f"stages.{stage}.blocks.{i}")
        if stage + 1 < len(cfg.depths):
            yield from norm(f"encoder.layers.{stage}.downsample.norm", f"stages.{stage}.merge.norm")
            reduction = f"encoder.layers.{stage}.downsample.reduction"
            yield from linear(reduction, f"stages.{stage}.merge.down", bias=False)
    if cfg.has_last_norm:
        yield from norm("layernorm", "norm")


def window_index(window: int) -> np.ndarray:
    """Where a window's table holds each pair's offset, as torch keeps it."""
    return relative_index(window, window).astype(np.int64)


def block_rows(cfg: SwinConfig, layer: str, block: str) -> Rows:
    """One block's tensors."""
    attention = f"{layer}.attention.self"
    yield from norm(f"{layer}.layernorm_before", f"{block}.norm1")
    yield from linear(f"{attention}.query", f"{block}.attn.q", bias=cfg.qkv_bias)
    yield from linear(f"{attention}.key", f"{block}.attn.k", bias=cfg.key_bias)
    yield from linear(f"{attention}.value", f"{block}.attn.v", bias=cfg.qkv_bias)
    yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out")
    if isinstance(cfg, Swinv2Config):
        yield from parameter(f"{attention}.logit_scale", f"{block}.attn.logit_scale")
        yield from linear(f"{attention}.continuous_position_bias_mlp.0", f"{block}.bias.up")
        yield from linear(f"{attention}.continuous_position_bias_mlp.2", f"{block}.bias.down", bias=False)
        yield Dropped(f"{attention}.relative_coords_table")
        yield Dropped(f"{attention}.relative_position_index")
    else:
        yield from parameter(f"{attention}.relative_position_bias_table", f"{block}.bias.table")
        yield Computed(f"{attention}.relative_position_index", functools.partial(window_index, cfg.window_size))
    yield from norm(f"{layer}.layernorm_after", f"{block}.norm2")
    yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up")
    yield from linear(f"{layer}.output.dense", f"{block}.mlp.down")
