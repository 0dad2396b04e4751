"""BEiT."""

from conversion.rules import Carried, Dropped, Rows, carried_norm, linear, norm, parameter, patches
from ved_core.configs import BeitConfig
from ved_core.configs.fields import as_pair

PREFIXES = ("", "beit.")


def rows(cfg: BeitConfig) -> Rows:
    """The encoder's tensors, layer by layer."""
    yield from parameter("embeddings.cls_token", "cls_token")
    if cfg.has_positions:
        yield from parameter("embeddings.position_embeddings", "positions")
    rule = patches(cfg.num_channels, *as_pair(cfg.patch_size))
    yield from linear("embeddings.patch_embeddings.projection", "patches", rule=rule)
    yield Carried("embeddings.mask_token", (1, 1, cfg.hidden_size), std=0.0 if cfg.use_mask_token else None)
    if cfg.use_shared_relative_position_bias:
        yield from grid_bias("encoder.relative_position_bias", "shared_bias")
    for i in range(cfg.num_hidden_layers):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.layernorm_before", f"{block}.norm1")
        yield from linear(f"{layer}.attention.attention.query", f"{block}.attn.q")
        yield from linear(f"{layer}.attention.attention.key", f"{block}.attn.k", bias=False)
        yield from linear(f"{layer}.attention.attention.value", f"{block}.attn.v")
        yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out")
        if cfg.use_relative_position_bias:
            yield from grid_bias(f"{layer}.attention.attention.relative_position_bias", f"block_biases.{i}")
        if cfg.layer_scale is not None:
            yield from parameter(f"{layer}.lambda_1", f"{block}.scale1")
            yield from parameter(f"{layer}.lambda_2", f"{block}.scale2")
        yield from norm(f"{layer}.layernorm_after", f"{block}.norm2")
        yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up")
        yield from linear(f"{layer}.output.dense", f"{block}.mlp.down")
    if cfg.has_last_norm:
        yield from norm("layernorm", "norm")
    else:
        yield from carried_norm("pooler.layernorm", cfg.hidden_size)


def grid_bias(stored: str, path: str) -> Rows:
    """A relative position table, and the index into it that older checkpoints keep."""
    yield from parameter(f"{stored}.relative_position_bias_table", f"{path}.table")
    yield Dropped(f"{stored}.relative_position_index")
