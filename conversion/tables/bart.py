"""BART's decoder and its vocabulary head, and the parts that decoders in its manner share."""

from conversion.rules import Dropped, Rows, Tied, embedding, linear, norm
from ved_core.configs import BartConfig
from ved_core.configs.bart import BartDecoderConfig

PREFIXES = ("model.decoder.", "decoder.", "")
POSITION_OFFSET = 2


def rows(cfg: BartConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("model.decoder.embed_tokens", "tokens", cfg.vocab_size, cfg.d_model)
    # Where a whole BART was taken apart, its two halves' common embedding may have stayed.
    for shared in ("model.shared", "shared"):
        yield Tied(f"{shared}.weight", "model.decoder.embed_tokens.weight", cfg.tie_word_embeddings, expected=False)
    yield from positions(cfg)
    yield from norm("model.decoder.layernorm_embedding", "norm_embedding", cfg.d_model)
    yield from layers(cfg)
    yield from head("lm_head", cfg)
    yield Dropped("final_logits_bias")


def positions(cfg: BartDecoderConfig) -> Rows:
    """Learned positions, behind the entries that were fairseq's padding."""
    entries = cfg.max_position_embeddings + POSITION_OFFSET
    yield from embedding("model.decoder.embed_positions", "positions", entries, cfg.d_model)


def layers(cfg: BartDecoderConfig) -> Rows:
    """All layers."""
    width = cfg.d_model
    read = {"attn": width, "cross_attn": cfg.cross_attention_hidden_size or width}
    for i in range(cfg.decoder_layers):
        layer, block = f"model.decoder.layers.{i}", f"blocks.{i}"
        for stored, path in (("self_attn", "attn"), ("encoder_attn", "cross_attn")):
            yield from linear(f"{layer}.{stored}.q_proj", f"{block}.{path}.q", width, width)
            yield from linear(f"{layer}.{stored}.k_proj", f"{block}.{path}.k", read[path], width)
            yield from linear(f"{layer}.{stored}.v_proj", f"{block}.{path}.v", read[path], width)
            yield from linear(f"{layer}.{stored}.out_proj", f"{block}.{path}.out", width, width)
        yield from norm(f"{layer}.self_attn_layer_norm", f"{block}.norm1", width)
        yield from norm(f"{layer}.encoder_attn_layer_norm", f"{block}.norm_cross", width)
        yield from linear(f"{layer}.fc1", f"{block}.mlp.up", width, cfg.decoder_ffn_dim)
        yield from linear(f"{layer}.fc2", f"{block}.mlp.down", cfg.decoder_ffn_dim, width)
        yield from norm(f"{layer}.final_layer_norm", f"{block}.norm2", width)


def head(stored: str, cfg: BartDecoderConfig) -> Rows:
    """The vocabulary head, stored under `stored` where it is not the token embedding."""
    if cfg.tie_word_embeddings:
        yield Tied(f"{stored}.weight", "model.decoder.embed_tokens.weight")
    else:
        yield from linear(stored, "head", cfg.d_model, cfg.vocab_size, bias=False)
