"""DistilBERT and its vocabulary head. The names of its cross-attention are ours: no other library has one."""

from conversion.rules import PARAMETER, WORD_EMBEDDING, Dropped, Row, Rows, Tied, embedding, linear, norm
from ved_core.configs import DistilBertConfig

PREFIXES = ("distilbert.", "")


def rows(cfg: DistilBertConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from embedding("distilbert.embeddings.word_embeddings", "tokens", WORD_EMBEDDING)
    yield from embedding("distilbert.embeddings.position_embeddings", "positions")
    yield from norm("distilbert.embeddings.LayerNorm", "norm_embedding")
    yield Dropped("distilbert.embeddings.position_ids")
    for i in range(cfg.n_layers):
        layer, block = f"distilbert.transformer.layer.{i}", f"blocks.{i}"
        for stored, path in (("attention", "attn"), ("crossattention", "cross_attn")):
            yield from linear(f"{layer}.{stored}.q_lin", f"{block}.{path}.q")
            yield from linear(f"{layer}.{stored}.k_lin", f"{block}.{path}.k")
            yield from linear(f"{layer}.{stored}.v_lin", f"{block}.{path}.v")
            yield from linear(f"{layer}.{stored}.out_lin", f"{block}.{path}.out")
        yield from norm(f"{layer}.sa_layer_norm", f"{block}.norm1")
        yield from norm(f"{layer}.crossattention_layer_norm", f"{block}.norm_cross")
        yield from linear(f"{layer}.ffn.lin1", f"{block}.mlp.up")
        yield from linear(f"{layer}.ffn.lin2", f"{block}.mlp.down")
        yield from norm(f"{layer}.output_layer_norm", f"{block}.norm2")
    yield from linear("vocab_transform", "transform.dense")
    yield from norm("vocab_layer_norm", "transform.norm")
    if cfg.tie_word_embeddings:
        yield Tied("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")
    else:
        yield from linear("vocab_projector", "head", bias=False)
    yield Row("vocab_projector.bias", ("head_bias",), PARAMETER)
