"""TrOCR's decoder and its vocabulary head."""

from conversion.rules import Dropped, Rows, Tied, embedding, linear, norm
from ved_core.configs import TrOCRConfig

PREFIXES = ("model.decoder.", "decoder.", "")


def rows(cfg: TrOCRConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("model.decoder.embed_tokens", "tokens")
    if cfg.use_learned_position_embeddings:
        yield from embedding("model.decoder.embed_positions", "positions")
    else:
        yield Dropped("model.decoder.embed_positions._float_tensor")
        yield Dropped("model.decoder.embed_positions.weights")
    if cfg.layernorm_embedding:
        yield from norm("model.decoder.layernorm_embedding", "norm_embedding")
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
    if cfg.tie_word_embeddings:
        yield Tied("output_projection.weight", "model.decoder.embed_tokens.weight")
    else:
        yield from linear("output_projection", "head", bias=False)
