"""DistilBERT and its vocabulary head. The names of its cross-attention are ours: no other library has one."""

from conversion.rules import PARAMETER, WORD_EMBEDDING, Dropped, Row, Rows, Tied, embedding, linear, norm
from ved_core.configs import DistilBertConfig

PREFIXES = ("distilbert.", "")


def rows(cfg: DistilBertConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("distilbert.embeddings.word_embeddings", "tokens", cfg.vocab_size, cfg.dim, WORD_EMBEDDING)
    yield from embedding("distilbert.embeddings.position_embeddings", "positions", cfg.max_position_embeddings, cfg.dim)
    yield from norm("distilbert.embeddings.LayerNorm", "norm_embedding", cfg.dim)
    yield Dropped("distilbert.embeddings.position_ids")
    for i in range(cfg.n_layers):
        layer, block = f"distilbert.transformer.layer.{i}", f"blocks.{i}"
        for stored, path in (("attention", "attn"), ("crossattention", "cross_attn")):
            yield from linear(f"{layer}.{stored}.q_lin", f"{block}.{path}.q", cfg.dim, cfg.dim)
            yield from linear(f"{layer}.{stored}.k_lin", f"{block}.{path}.k", cfg.dim, cfg.dim)
            yield from linear(f"{layer}.{stored}.v_lin", f"{block}.{path}.v", cfg.dim, cfg.dim)
            yield from linear(f"{layer}.{stored}.out_lin", f"{block}.{path}.out", cfg.dim, cfg.dim)
        yield from norm(f"{layer}.sa_layer_norm", f"{block}.norm1", cfg.dim)
        yield from norm(f"{layer}.crossattention_layer_norm", f"{block}.norm_cross", cfg.dim)
        yield from linear(f"{layer}.ffn.lin1", f"{block}.mlp.up", cfg.dim, cfg.hidden_dim)
        yield from linear(f"{layer}.ffn.lin2", f"{block}.mlp.down", cfg.hidden_dim, cfg.dim)
        yield from norm(f"{layer}.output_layer_norm", f"{block}.norm2", cfg.dim)
    yield from linear("vocab_transform", "transform.dense", cfg.dim, cfg.dim)
    yield from norm("vocab_layer_norm", "transform.norm", cfg.dim)
    if cfg.tie_word_embeddings:
        yield Tied("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")
    else:
        yield from linear("vocab_projector", "head", cfg.dim, cfg.vocab_size, bias=False)
    yield Row("vocab_projector.bias", ("head_bias",), PARAMETER, (cfg.vocab_size,))
