"""BEiT."""

from conversion.rules import Carried, Dropped, Rows, carried_norm, convolution, linear, norm, parameter
from ved_core.configs import BeitConfig
from ved_core.configs.fields import as_pair

PREFIXES = ("", "beit.")


def rows(cfg: BeitConfig) -> Rows:
    """The encoder's tensors, layer by layer."""
    width = cfg.hidden_size
    yield from parameter("embeddings.cls_token", "cls_token", 1, 1, width)
    if cfg.has_positions:
        yield from parameter("embeddings.position_embeddings", "positions", 1, cfg.positions, width)
    projection = "embeddings.patch_embeddings.projection"
    yield from convolution(projection, "patches", cfg.num_channels, as_pair(cfg.patch_size), width)
    yield Carried("embeddings.mask_token", (1, 1, width), std=0.0 if cfg.use_mask_token else None)
    if cfg.use_shared_relative_position_bias:
        yield from grid_bias("encoder.relative_position_bias", "shared_bias", cfg)
    for i in range(cfg.num_hidden_layers):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.layernorm_before", f"{block}.norm1", width)
        yield from linear(f"{layer}.attention.attention.query", f"{block}.attn.q", width, width)
        yield from linear(f"{layer}.attention.attention.key", f"{block}.attn.k", width, width, bias=False)
        yield from linear(f"{layer}.attention.attention.value", f"{block}.attn.v", width, width)
        yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out", width, width)
        if cfg.use_relative_position_bias:
            yield from grid_bias(f"{layer}.attention.attention.relative_position_bias", f"block_biases.{i}", cfg)
        if cfg.layer_scale is not None:
            yield from parameter(f"{layer}.lambda_1", f"{block}.scale1", width)
            yield from parameter(f"{layer}.lambda_2", f"{block}.scale2", width)
        yield from norm(f"{layer}.layernorm_after", f"{block}.norm2", width)
        yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up", width, cfg.mlp_size)
        yield from linear(f"{layer}.output.dense", f"{block}.mlp.down", cfg.mlp_size, width)
    if cfg.has_last_norm:
        yield from norm("layernorm", "norm", width)
    else:
        yield from carried_norm("pooler.layernorm", width)


def grid_bias(stored: str, path: str, cfg: BeitConfig) -> Rows:
    """A relative position table, and the index into it that older checkpoints keep."""
    yield from parameter(
        f"{stored}.relative_position_bias_table", f"{path}.table", cfg.distances, cfg.num_attention_heads
    )
    yield Dropped(f"{stored}.relative_position_index")
