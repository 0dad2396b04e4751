"""GPT-2 with cross-attention and its vocabulary head."""

from conversion.rules import Dropped, Rows, Tied, conv1d, embedding, linear, norm
from ved_core.configs import GPT2Config

PREFIXES = ("transformer.", "")


def rows(cfg: GPT2Config) -> Rows:
    """The decoder's tensors, layer by layer."""
    width = cfg.n_embd
    yield from embedding("transformer.wte", "tokens", cfg.vocab_size, width)
    yield from embedding("transformer.wpe", "positions", cfg.n_positions, width)
    for i in range(cfg.n_layer):
        layer, block = f"transformer.h.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.ln_1", f"{block}.norm1", width)
        fused = tuple(f"{block}.attn.{part}" for part in "qkv")
        yield from conv1d(f"{layer}.attn.c_attn", fused, width, 3 * width)
        yield from conv1d(f"{layer}.attn.c_proj", f"{block}.attn.out", width, width)
        yield from norm(f"{layer}.ln_cross_attn", f"{block}.norm_cross", width)
        yield from conv1d(f"{layer}.crossattention.q_attn", f"{block}.cross_attn.q", width, width)
        fused = tuple(f"{block}.cross_attn.{part}" for part in "kv")
        yield from conv1d(f"{layer}.crossattention.c_attn", fused, width, 2 * width)
        yield from conv1d(f"{layer}.crossattention.c_proj", f"{block}.cross_attn.out", width, width)
        yield from norm(f"{layer}.ln_2", f"{block}.norm2", width)
        yield from conv1d(f"{layer}.mlp.c_fc", f"{block}.mlp.up", width, cfg.mlp_size)
        yield from conv1d(f"{layer}.mlp.c_proj", f"{block}.mlp.down", cfg.mlp_size, width)
        for attention in ("attn", "crossattention"):  # causal masks, kept as buffers by older releases
            yield Dropped(f"{layer}.{attention}.bias")
            yield Dropped(f"{layer}.{attention}.masked_bias")
    yield from norm("transformer.ln_f", "norm", width)
    if cfg.tie_word_embeddings:
        yield Tied("lm_head.weight", "transformer.wte.weight")
    else:
        yield from linear("lm_head", "head", width, cfg.vocab_size, bias=False)
