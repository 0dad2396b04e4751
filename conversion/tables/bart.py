"""BART's decoder and its vocabulary head, and the parts that decoders in its manner share."""

from conversion.rules import Dropped, Rows, Tied, embedding, linear, norm
from ved_core.configs import BartConfig
from ved_core.configs.bart import BartDecoderConfig

PREFIXES = ("model.decoder.", "decoder.", "")


def rows(cfg: BartConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("model.decoder.embed_tokens", "tokens")
    # Where a whole BART was taken apart, its two halves' common embedding may have stayed.
    for shared in ("model.shared", "shared"):
        yield Tied(f"{shared}.weight", "model.decoder.embed_tokens.weight", cfg.tie_word_embeddings, expected=False)
    yield from embedding("model.decoder.embed_positions", "positions")
    yield from norm("model.decoder.layernorm_embedding", "norm_embedding")
    yield from layers(cfg)
    yield from head("lm_head", cfg)
    yield Dropped("final_logits_bias")


def layers(cfg: BartDecoderConfig) -> Rows:
    """All layers."""
    for i in range(cfg.decoder_layers):
        layer, block = f"model.decoder.layers.{i}", f"blocks.{i}"
        for stored, path in (("self_attn", "attn"), ("encoder_attn", "cross_attn")):
            yield from linear(f"{layer}.{stored}.q_proj", f"{block}.{path}.q")
            yield from linear(f"{layer}.{stored}.k_proj", f"{block}.{path}.k")
            yield from linear(f"{layer}.{stored}.v_proj", f"{block}.{path}.v")
            yield from linear(f"{layer}.{stored}.out_proj", f"{block}.{path}.out")
        yield from norm(f"{layer}.self_attn_layer_norm", f"{block}.norm1")
        yield from norm(f"{layer}.encoder_attn_layer_norm", f"{block}.norm_cross")
        yield from linear(f"{layer}.fc1", f"{block}.mlp.up")
        yield from linear(f"{layer}.fc2", f"{block}.mlp.down")
        yield from norm(f"{layer}.final_layer_norm", f"{block}.norm2")


def head(stored: str, cfg: BartDecoderConfig) -> Rows:
    """The vocabulary head, stored under `stored` where it is not the token embedding."""
    if cfg.tie_word_embeddings:
        yield Tied(f"{stored}.weight", "model.decoder.embed_tokens.weight")
    else:
        yield from linear(stored, "head", bias=False)
