"""ViT and DeiT."""

from conversion.rules import Carried, Rows, carried_linear, linear, norm, parameter, patches
from ved_core.configs import ViTConfig
from ved_core.configs.fields import as_pair

PREFIXES = ("", "vit.", "deit.")
"""What may stand before these names in a stored encoder; the first is what we write."""


def rows(cfg: ViTConfig) -> Rows:
    """The encoder's tensors, layer by layer."""
    yield from parameter("embeddings.cls_token", "cls_token")
    if cfg.extra_tokens == 2:
        yield from parameter("embeddings.distillation_token", "distillation_token")
    yield from parameter("embeddings.position_embeddings", "positions")
    rule = patches(cfg.num_channels, *as_pair(cfg.patch_size))
    yield from linear("embeddings.patch_embeddings.projection", "patches", rule=rule)
    yield Carried("embeddings.mask_token", (1, 1, cfg.hidden_size))
    for i in range(cfg.num_hidden_layers):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.layernorm_before", f"{block}.norm1")
        yield from linear(f"{layer}.attention.attention.query", f"{block}.attn.q", bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.key", f"{block}.attn.k", bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.value", f"{block}.attn.v", bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out")
        yield from norm(f"{layer}.layernorm_after", f"{block}.norm2")
        yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up")
        yield from linear(f"{layer}.output.dense", f"{block}.mlp.down")
    yield from norm("layernorm", "norm")
    pooled = cfg.get("pooler_output_size") or cfg.hidden_size
    yield from carried_linear("pooler.dense", cfg.hidden_size, pooled, cfg.initializer_range)
