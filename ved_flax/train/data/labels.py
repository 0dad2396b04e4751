"""Texts to labels."""

from typing import Any

import numpy as np

from ved_core.errors import ConfigError, DataError
from ved_core.inputs import IGNORED
from ved_flax.train.data.config import DataConfig


class Labels:
    """A text's labels (T,), T = data.max_length, IGNORED behind the text.

    As in transformers' fine-tuning examples the end token closes a text and no start token opens it: decoder inputs are
    the labels shifted right. A text that is too long is cut, and keeps what closes it. Raises ConfigError where no end
    token is known.
    """

    def __init__(
        self, tokenizer: Any, config: DataConfig, *, end_token_id: int | None = None, vocab_size: int | None = None
    ) -> None:
        """`end_token_id`: the model's; without it the tokenizer's end or separator token. `vocab_size`: the decoder's,
        which no label may reach."""
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.length, self.kind = config.max_length, config.special_tokens
        ends = (end_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id)
        self.end = next((token for token in ends if token is not None), None)
        if self.kind == "end" and self.end is None:
            raise ConfigError(
                "neither the model nor its tokenizer has an end token: set eos_token_id in config.json, or "
                "data.special_tokens to tokenizer or none"
            )
        self("a")  # the first call takes stored settings of truncation out of a tokenizer, which threads must not

    def __call__(self, text: str) -> tuple[np.ndarray, bool]:
        """Labels int32, and whether the text was cut. Raises DataError for a token that the decoder does not have."""
        ids = self.tokenizer(text, add_special_tokens=self.kind == "tokenizer", verbose=False)["input_ids"]
        if self.kind == "end":
            ids = [*ids, self.end]
        cut = len(ids) > self.length
        if cut:
            ids = ids[: self.length] if self.kind == "none" else [*ids[: self.length - 1], ids[-1]]
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            raise DataError(
                f"token {max(ids)} of {text[:40]!r} is outside of the decoder's vocabulary of {self.vocab_size}: this "
                "is another model's tokenizer, or call resize_token_embeddings"
            )
        labels = np.full(self.length, IGNORED, np.int32)
        labels[: len(ids)] = ids
        return labels, cut
