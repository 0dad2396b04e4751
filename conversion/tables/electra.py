"""ELECTRA's generator with cross-attention."""

from conversion.rules import PARAMETER, Row, Rows, Tied, linear, norm
from conversion.tables import bert
from ved_core.configs import ElectraConfig

PREFIXES = ("electra.", "")


def rows(cfg: ElectraConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from bert.body("electra", cfg)
    if cfg.embedding_width != cfg.hidden_size:
        yield from linear("electra.embeddings_project", "project", cfg.embedding_width, cfg.hidden_size)
    yield from linear("generator_predictions.dense", "transform.dense", cfg.hidden_size, cfg.embedding_width)
    yield from norm("generator_predictions.LayerNorm", "transform.norm", cfg.embedding_width)
    if cfg.tie_word_embeddings:
        yield Tied("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight")
    else:
        yield from linear("generator_lm_head", "head", cfg.embedding_width, cfg.vocab_size, bias=False)
    yield Row("generator_lm_head.bias", ("head_bias",), PARAMETER, (cfg.vocab_size,))
