"""BERT with cross-attention and its vocabulary head, and the layers that its family shares."""

from conversion.rules import (
    PARAMETER,
    WORD_EMBEDDING,
    Carried,
    Dropped,
    Row,
    Rows,
    Tied,
    carried_linear,
    embedding,
    linear,
    norm,
)
from ved_core.configs import BertConfig

PREFIXES = ("bert.", "")


def rows(cfg: BertConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from body("bert", cfg)
    yield from pooler("bert", cfg)
    yield from linear("cls.predictions.transform.dense", "transform.dense", cfg.hidden_size, cfg.embedding_width)
    yield from norm("cls.predictions.transform.LayerNorm", "transform.norm", cfg.embedding_width)
    yield from head("cls.predictions", "bert", cfg)
    yield from carried_linear("cls.seq_relationship", cfg.hidden_size, 2)


def body(model: str, cfg: BertConfig) -> Rows:
    """Embeddings and layers of a BERT, stored under `model`."""
    width, narrow, hidden = cfg.hidden_size, cfg.embedding_width, cfg.intermediate_size
    yield from embedding(f"{model}.embeddings.word_embeddings", "tokens", cfg.vocab_size, narrow, WORD_EMBEDDING)
    yield from embedding(f"{model}.embeddings.position_embeddings", "positions", cfg.max_position_embeddings, narrow)
    yield from embedding(f"{model}.embeddings.token_type_embeddings", "token_types", cfg.type_vocab_size, narrow)
    yield from norm(f"{model}.embeddings.LayerNorm", "norm_embedding", narrow)
    yield Dropped(f"{model}.embeddings.position_ids")
    yield Dropped(f"{model}.embeddings.token_type_ids")
    for i in range(cfg.num_hidden_layers):
        layer, block = f"{model}.encoder.layer.{i}", f"blocks.{i}"
        for stored, path, after in (("attention", "attn", "norm1"), ("crossattention", "cross_attn", "norm_cross")):
            yield from linear(f"{layer}.{stored}.self.query", f"{block}.{path}.q", width, width)
            yield from linear(f"{layer}.{stored}.self.key", f"{block}.{path}.k", width, width)
            yield from linear(f"{layer}.{stored}.self.value", f"{block}.{path}.v", width, width)
            yield from linear(f"{layer}.{stored}.output.dense", f"{block}.{path}.out", width, width)
            yield from norm(f"{layer}.{stored}.output.LayerNorm", f"{block}.{after}", width)
        yield from linear(f"{layer}.intermediate.dense", f"{block}.mlp.up", width, hidden)
        yield from linear(f"{layer}.output.dense", f"{block}.mlp.down", hidden, width)
        yield from norm(f"{layer}.output.LayerNorm", f"{block}.norm2", width)


def pooler(model: str, cfg: BertConfig) -> Rows:
    """What classifiers read; some published checkpoints keep it."""
    yield from carried_linear(f"{model}.pooler.dense", cfg.hidden_size, cfg.hidden_size)


def head(stored: str, model: str, cfg: BertConfig) -> Rows:
    """The vocabulary head `stored`: a linear map `decoder`, and its bias a second time beside it."""
    if cfg.tie_word_embeddings:
        yield Tied(f"{stored}.decoder.weight", f"{model}.embeddings.word_embeddings.weight")
        yield Row(f"{stored}.bias", ("head_bias",), PARAMETER, (cfg.vocab_size,))
        yield Tied(f"{stored}.decoder.bias", f"{stored}.bias")
    else:
        # Untied, `decoder` computes with its own bias, and the other one is left over. Older releases store only that.
        yield from linear(f"{stored}.decoder", "head", cfg.embedding_width, cfg.vocab_size, bias=False)
        yield Row(f"{stored}.decoder.bias", ("head_bias",), PARAMETER, (cfg.vocab_size,))
        yield Carried(f"{stored}.bias", (cfg.vocab_size,), std=0.0, to=f"{stored}.decoder.bias")
