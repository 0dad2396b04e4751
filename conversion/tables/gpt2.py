"""GPT-2 with cross-attention and its vocabulary head."""

from conversion.rules import Dropped, Rows, Tied, conv1d, embedding, linear, norm
from ved_core.configs import GPT2Config

PREFIXES = ("transformer.", "")


def rows(cfg: GPT2Config) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("transformer.wte", "tokens")
    yield from embedding("transformer.wpe", "positions")
    for i in range(cfg.n_layer):
        layer, block = f"transformer.h.{i}", f"blocks.{i}"
        yield from norm(f"{layer}.ln_1", f"{block}.norm1")
        yield from conv1d(f"{layer}.attn.c_attn", f"{block}.attn.q", f"{block}.attn.k", f"{block}.attn.v")
        yield from conv1d(f"{layer}.attn.c_proj", f"{block}.attn.out")
        yield from norm(f"{layer}.ln_cross_attn", f"{block}.norm_cross")
        yield from conv1d(f"{layer}.crossattention.q_attn", f"{block}.cross_attn.q")
        yield from conv1d(f"{layer}.crossattention.c_attn", f"{block}.cross_attn.k", f"{block}.cross_attn.v")
        yield from conv1d(f"{layer}.crossattention.c_proj", f"{block}.cross_attn.out")
        yield from norm(f"{layer}.ln_2", f"{block}.norm2")
        yield from conv1d(f"{layer}.mlp.c_fc", f"{block}.mlp.up")
        yield from conv1d(f"{layer}.mlp.c_proj", f"{block}.mlp.down")
        for attention in ("attn", "crossattention"):  # causal masks, kept as buffers by older releases
            yield Dropped(f"{layer}.{attention}.bias")
            yield Dropped(f"{layer}.{attention}.masked_bias")
    yield from norm("transformer.ln_f", "norm")
    if cfg.tie_word_embeddings:
        yield Tied("lm_head.weight", "transformer.wte.weight")
    else:
        yield from linear("lm_head", "head", bias=False)
