"""RoBERTa, XLM-RoBERTa and CamemBERT with cross-attention and their vocabulary head."""

from conversion.rules import Rows, linear, norm
from conversion.tables import bert
from ved_core.configs import RobertaConfig

PREFIXES = ("roberta.", "")


def rows(cfg: RobertaConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from bert.body("roberta", cfg)
    yield from bert.pooler("roberta", cfg)
    yield from linear("lm_head.dense", "transform.dense", cfg.hidden_size, cfg.hidden_size)
    yield from norm("lm_head.layer_norm", "transform.norm", cfg.hidden_size)
    yield from bert.head("lm_head", "roberta", cfg)
