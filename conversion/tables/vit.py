"""ViT and DeiT."""

from conversion.rules import Carried, Rows, carried_linear, convolution, linear, norm, parameter
from ved_core.configs import ViTConfig
from ved_core.configs.fields import as_pair

PREFIXES = ("", "vit.", "deit.")
"""What may stand before these names in a stored encoder; the first is what we write."""


def rows(cfg: ViTConfig) -> Rows:
    """The encoder's tensors, layer by layer."""
    width = cfg.hidden_size
    yield from parameter("embeddings.cls_token", "cls_token", 1, 1, width)
    if cfg.extra_tokens == 2:
        yield from parameter("embeddings.distillation_token", "distillation_token", 1, 1, width)
    yield from parameter("embeddings.position_embeddings", "positions", 1, cfg.positions, width)
    projection = "embeddings.patch_embeddings.projection"
    yield from convolution(projection, "patches", cfg.num_channels, as_pair(cfg.patch_size), width)
    yield Carried("embeddings.mask_token", (1, 1, width))
    for i in range(cfg.num_hidden_layers):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.layernorm_before", f"{block}.norm1", width)
        yield from linear(f"{layer}.attention.attention.query", f"{block}.attn.q", width, width, bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.key", f"{block}.attn.k", width, width, bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.value", f"{block}.attn.v", width, width, bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out", width, width)
        yield from norm(f"{layer}.layernorm_after", f"{block}.norm2", width)
        yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up", width, cfg.mlp_size)
        yield from linear(f"{layer}.output.dense", f"{block}.mlp.down", cfg.mlp_size, width)
    yield from norm("layernorm", "norm", width)
    pooled = cfg.get("pooler_output_size") or width
    yield from carried_linear("pooler.dense", width, pooled, cfg.initializer_range)
