"""DINOv2, without and with registers."""

from conversion.rules import Carried, Rows, linear, norm, parameter, patches
from ved_core.configs import Dinov2Config
from ved_core.configs.fields import as_pair

PREFIXES = ("", "dinov2.", "dinov2_with_registers.")


def rows(cfg: Dinov2Config) -> Rows:
    """The encoder's tensors, layer by layer."""
    yield from parameter("embeddings.cls_token", "cls_token")
    if cfg.registers:
        yield from parameter("embeddings.register_tokens", "registers")
    yield from parameter("embeddings.position_embeddings", "positions")
    rule = patches(cfg.num_channels, *as_pair(cfg.patch_size))
    yield from linear("embeddings.patch_embeddings.projection", "patches", rule=rule)
    yield Carried("embeddings.mask_token", (1, cfg.hidden_size), std=0.0 if cfg.use_mask_token else None)
    for i in range(cfg.num_hidden_layers):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.norm1", f"{block}.norm1")
        yield from linear(f"{layer}.attention.attention.query", f"{block}.attn.q", bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.key", f"{block}.attn.k", bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.value", f"{block}.attn.v", bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out")
        yield from parameter(f"{layer}.layer_scale1.lambda1", f"{block}.scale1")
        yield from norm(f"{layer}.norm2", f"{block}.norm2")
        if cfg.gated_mlp:
            yield from linear(f"{layer}.mlp.weights_in", f"{block}.mlp.gate", f"{block}.mlp.up")
            yield from linear(f"{layer}.mlp.weights_out", f"{block}.mlp.down")
        else:
            yield from linear(f"{layer}.mlp.fc1", f"{block}.mlp.up")
            yield from linear(f"{layer}.mlp.fc2", f"{block}.mlp.down")
        yield from parameter(f"{layer}.layer_scale2.lambda1", f"{block}.scale2")
    yield from norm("layernorm", "norm")
