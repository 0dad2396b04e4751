"""BART (arXiv:1910.13461), mBART (arXiv:2001.08210), and what all decoders in BART's manner have."""

import dataclasses
from typing import ClassVar

from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.fields import activation, depth, flag, non_negative, probability, size, token, tokens


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class BartDecoderConfig(DecoderConfig):
    """The decoder's own fields."""

    vocab_size: int = size(50265)
    d_model: int = size(1024)
    decoder_layers: int = depth(12)
    decoder_attention_heads: int = size(16)
    decoder_ffn_dim: int = size(4096)
    activation_function: str = activation("gelu")
    max_position_embeddings: int = size(1024)
    dropout: float = probability(0.1)
    attention_dropout: float = probability(0.0)
    activation_dropout: float = probability(0.0)
    init_std: float = non_negative(0.02)
    decoder_layerdrop: float = probability(0.0)
    scale_embedding: bool = flag(False)
    bos_token_id: int | None = token(0)
    pad_token_id: int | None = token(1)
    eos_token_id: int | list[int] | None = tokens(2)
    decoder_start_token_id: int | None = token(2)

    def check(self) -> None:
        super().check()
        self.check_heads("decoder_attention_heads", "d_model")
        self.check_padding()


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class BartConfig(BartDecoderConfig):
    """BART, of which only the decoder is used: `encoder_*`, and with them `num_hidden_layers`, describe its other half,
    and are kept as they are."""

    model_type: ClassVar[str] = "bart"
    architecture: ClassVar[str] = "BartForCausalLM"
    aliases: ClassVar[dict[str, str]] = DecoderConfig.aliases | {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    layernorm_embedding: ClassVar[bool] = True
    use_learned_position_embeddings: ClassVar[bool] = True

    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    forced_eos_token_id: int | list[int] | None = tokens(2)

    def check(self) -> None:
        super().check()
        self.check_cross_width("d_model")


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class MBartConfig(BartConfig):
    """mBART: BART with the norms before the sublayers and one behind the last block."""

    model_type: ClassVar[str] = "mbart"
    architecture: ClassVar[str] = "MBartForCausalLM"

    decoder_start_token_id: int | None = token(None)
