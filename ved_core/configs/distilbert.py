"""DistilBERT (arXiv:1910.01108)."""

import dataclasses
from typing import ClassVar

from ved_core.configs import fields
from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.fields import depth, flag, non_negative, probability, size, token


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class DistilBertConfig(DecoderConfig):
    """DistilBERT as a decoder with cross-attention, which no other library has."""

    model_type: ClassVar[str] = "distilbert"
    architecture: ClassVar[str] = "DistilBertForMaskedLM"
    aliases: ClassVar[dict[str, str]] = DecoderConfig.aliases | {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = size(30522)
    max_position_embeddings: int = size(512)
    sinusoidal_pos_embds: bool = flag(False)
    """Whether a new model's positions begin as sines; they are learned either way."""
    n_layers: int = depth(6)
    n_heads: int = size(12)
    dim: int = size(768)
    hidden_dim: int = size(4 * 768)
    dropout: float = probability(0.1)
    attention_dropout: float = probability(0.1)
    activation: str = fields.activation("gelu")
    initializer_range: float = non_negative(0.02)
    pad_token_id: int | None = token(0)

    def check(self) -> None:
        super().check()
        self.check_heads("n_heads", "dim")
        self.check_cross_width("dim")
        self.check_padding()
