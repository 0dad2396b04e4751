"""TrOCR's text decoder (arXiv:2109.10282)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.bart import BartDecoderConfig
from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.fields import flag, size


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class TrOCRConfig(BartDecoderConfig):
    """A post-norm decoder in BART's manner, with learned or sinusoidal positions."""

    model_type: ClassVar[str] = "trocr"
    architecture: ClassVar[str] = "TrOCRForCausalLM"
    aliases: ClassVar[dict[str, str]] = DecoderConfig.aliases | {
        "hidden_size": "d_model",
        "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
    }

    max_position_embeddings: int = size(512)
    use_learned_position_embeddings: bool = flag(True)
    layernorm_embedding: bool = flag(True)

    def check(self) -> None:
        super().check()
        if not self.use_learned_position_embeddings:
            if self.pad_token_id is None:
                raise self.error("pad_token_id", None, "sinusoidal positions are counted from it; set it")
            if self.d_model < 4:
                raise self.error("d_model", self.d_model, "sinusoidal positions need a width of at least 4")
