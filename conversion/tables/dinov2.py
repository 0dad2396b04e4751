"""DINOv2, without and with registers."""

from conversion.rules import Carried, Rows, convolution, linear, norm, parameter
from ved_core.configs import Dinov2Config
from ved_core.configs.fields import as_pair

PREFIXES = ("", "dinov2.", "dinov2_with_registers.")


def rows(cfg: Dinov2Config) -> Rows:
    """The encoder's tensors, layer by layer."""
    width = cfg.hidden_size
    yield from parameter("embeddings.cls_token", "cls_token", 1, 1, width)
    if cfg.registers:
        yield from parameter("embeddings.register_tokens", "registers", 1, cfg.registers, width)
    yield from parameter("embeddings.position_embeddings", "positions", 1, cfg.positions, width)
    projection = "embeddings.patch_embeddings.projection"
    yield from convolution(projection, "patches", cfg.num_channels, as_pair(cfg.patch_size), width)
    yield Carried("embeddings.mask_token", (1, width), std=0.0 if cfg.use_mask_token else None)
    for i in range(cfg.num_hidden_layers):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.norm1", f"{block}.norm1", width)
        yield from linear(f"{layer}.attention.attention.query", f"{block}.attn.q", width, width, bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.key", f"{block}.attn.k", width, width, bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.attention.value", f"{block}.attn.v", width, width, bias=cfg.qkv_bias)
        yield from linear(f"{layer}.attention.output.dense", f"{block}.attn.out", width, width)
        yield from parameter(f"{layer}.layer_scale1.lambda1", f"{block}.scale1", width)
        yield from norm(f"{layer}.norm2", f"{block}.norm2", width)
        if cfg.gated_mlp:
            yield from linear(
                f"{layer}.mlp.weights_in", (f"{block}.mlp.gate", f"{block}.mlp.up"), width, 2 * cfg.mlp_size
            )
            yield from linear(f"{layer}.mlp.weights_out", f"{block}.mlp.down", cfg.mlp_size, width)
        else:
            yield from linear(f"{layer}.mlp.fc1", f"{block}.mlp.up", width, cfg.mlp_size)
            yield from linear(f"{layer}.mlp.fc2", f"{block}.mlp.down", cfg.mlp_size, width)
        yield from parameter(f"{layer}.layer_scale2.lambda1", f"{block}.scale2", width)
    yield from norm("layernorm", "norm", width)
