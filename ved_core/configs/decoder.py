"""What every text decoder's config has."""

import dataclasses
from typing import ClassVar

from ved_core.configs.base import Config
from ved_core.configs.fields import flag, size, token, tokens


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class DecoderConfig(Config):
    """Fields and derived sizes that the joined model reads from any decoder."""

    aliases: ClassVar[dict[str, str]] = {"encoder_hidden_size": "cross_attention_hidden_size"}

    is_decoder: bool = flag(False)
    add_cross_attention: bool = flag(False)
    cross_attention_hidden_size: int | None = size(None, optional=True)
    tie_word_embeddings: bool = flag(True)
    bos_token_id: int | None = token(None)
    pad_token_id: int | None = token(None)
    eos_token_id: int | list[int] | None = tokens(None)
    decoder_start_token_id: int | None = token(None)

    def check_heads(self, heads: str, width: str) -> None:
        """Raise ConfigError unless field `heads` divides field `width`."""
        if getattr(self, width) % getattr(self, heads):
            raise self.error(heads, getattr(self, heads), f"does not divide {width} = {getattr(self, width)}")

    def check_cross_width(self, width: str) -> None:
        """Raise ConfigError unless cross-attention reads vectors of field `width`, as it does by default."""
        own = getattr(self, width)
        if self.cross_attention_hidden_size not in (None, own):
            raise self.error(
                "cross_attention_hidden_size",
                self.cross_attention_hidden_size,
                f"{self.model_type} attends over vectors of {width} = {own} only; leave it out, and the encoder's "
                "output is projected",
            )

    def check_padding(self) -> None:
        """Raise ConfigError unless the padding token, if there is one, is in the vocabulary: its row is kept at 0."""
        if self.pad_token_id is not None and self.pad_token_id >= self.get("vocab_size"):
            raise self.error(
                "pad_token_id", self.pad_token_id, f"is outside the vocabulary of {self.get('vocab_size')} tokens"
            )
