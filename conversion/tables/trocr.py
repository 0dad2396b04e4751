"""TrOCR's decoder and its vocabulary head."""

from conversion.rules import Dropped, Rows, embedding, norm
from conversion.tables import bart
from ved_core.configs import TrOCRConfig

PREFIXES = bart.PREFIXES


def rows(cfg: TrOCRConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("model.decoder.embed_tokens", "tokens", cfg.vocab_size, cfg.d_model)
    if cfg.use_learned_position_embeddings:
        yield from bart.positions(cfg)
    else:
        yield Dropped("model.decoder.embed_positions._float_tensor")
        yield Dropped("model.decoder.embed_positions.weights")
    if cfg.layernorm_embedding:
        yield from norm("model.decoder.layernorm_embedding", "norm_embedding", cfg.d_model)
    yield from bart.layers(cfg)
    yield from bart.head("output_projection", cfg)
