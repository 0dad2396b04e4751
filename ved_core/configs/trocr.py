"""TrOCR's text decoder (arXiv:2109.10282)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.fields import activation, depth, flag, non_negative, probability, size, token, tokens


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class TrOCRConfig(DecoderConfig):
    """A post-norm decoder in BART's manner, with learned or sinusoidal positions."""

    model_type: ClassVar[str] = "trocr"
    aliases: ClassVar[dict[str, str]] = DecoderConfig.aliases | {
        "hidden_size": "d_model",
        "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
    }

    vocab_size: int = size(50265)
    d_model: int = size(1024)
    decoder_layers: int = depth(12)
    decoder_attention_heads: int = size(16)
    decoder_ffn_dim: int = size(4096)
    activation_function: str = activation("gelu")
    max_position_embeddings: int = size(512)
    dropout: float = probability(0.1)
    attention_dropout: float = probability(0.0)
    activation_dropout: float = probability(0.0)
    init_std: float = non_negative(0.02)
    decoder_layerdrop: float = probability(0.0)
    scale_embedding: bool = flag(False)
    use_learned_position_embeddings: bool = flag(True)
    layernorm_embedding: bool = flag(True)
    bos_token_id: int | None = token(0)
    pad_token_id: int | None = token(1)
    eos_token_id: int | list[int] | None = tokens(2)
    decoder_start_token_id: int | None = token(2)

    def check(self) -> None:
        super().check()
        self.check_heads("decoder_attention_heads", "d_model")
        if not self.use_learned_position_embeddings:
            if self.pad_token_id is None:
                raise self.error("pad_token_id", None, "sinusoidal positions are counted from it; set it")
            if self.d_model < 4:
                raise self.error("d_model", self.d_model, "sinusoidal positions need a width of at least 4")
