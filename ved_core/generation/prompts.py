"""`Prompt`: the tokens that decoding begins with, of unequal length where a mask says so."""

from typing import Any, NamedTuple

import numpy as np

from ved_core.errors import GenerationError


class Prompt(NamedTuple):
    """ids (B, T) with padding on the left, its mask, and the ids as they were given."""

    ids_BT: np.ndarray
    mask_BT: np.ndarray
    given_BT: np.ndarray
    pad: int

    @classmethod
    def of(cls, ids: Any, mask: Any, batch: int, vocabulary: int, pad: int) -> "Prompt":
        """Check decoder_input_ids and decoder_attention_mask, (B, T) or None. Raises GenerationError."""
        if ids is None:
            if mask is not None:
                raise GenerationError("decoder_attention_mask is of decoder_input_ids: give both, or neither")
            empty = np.zeros((batch, 0), np.int64)
            return cls(empty, empty.astype(bool), empty, pad)
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "ui" or len(ids) != batch or ids.shape[1] == 0:
            raise GenerationError(
                f"decoder_input_ids should be integers of shape ({batch}, T), got {ids.dtype} of shape {ids.shape}"
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise GenerationError(f"decoder_input_ids has ids outside the vocabulary of {vocabulary} tokens")
        mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask)
        if mask.dtype.kind not in "biuf" or not ((mask == 0) | (mask == 1)).all():
            raise GenerationError("decoder_attention_mask should be 1 for tokens and 0 for padding, nothing else")
        known = mask.astype(bool)
        if known.shape != ids.shape:
            raise GenerationError(f"decoder_attention_mask is {known.shape}, decoder_input_ids is {ids.shape}")
        if not known.any(axis=1).all():
            raise GenerationError("decoder_attention_mask leaves a row of decoder_input_ids without any token")
        # Padding to the left: what is generated then stands directly behind each row's own tokens.
        order = np.argsort(known, axis=1, kind="stable")
        mask_BT = np.take_along_axis(known, order, axis=1)
        aligned = np.where(mask_BT, np.take_along_axis(ids, order, axis=1), pad)
        return cls(aligned, mask_BT, ids, pad)

    def begun(self, start: int | None, donut: bool, prepend: bool | None) -> "Prompt":
        """With the start token before it: where there is no prompt, or, unless `prepend` decides, where no row begins
        with it and the model is no Donut, whose prompts are complete (transformers' rule)."""
        batch, columns = self.ids_BT.shape
        first = self.ids_BT[np.arange(batch), self.mask_BT.argmax(axis=1)] if columns else None
        if first is not None and prepend is None:
            prepend = not donut and start is not None and bool((first != start).all())
        if first is not None and not prepend:
            return self
        if start is None:
            raise GenerationError("prepend_start needs a decoder_start_token_id: set it, or leave it out")
        new = np.full((batch, 1), start, self.ids_BT.dtype)
        given = np.concatenate([new, self.given_BT], axis=1)
        mask = np.concatenate([new >= 0, self.mask_BT], axis=1)
        order = np.argsort(mask, axis=1, kind="stable")
        ids = np.take_along_axis(np.concatenate([new, self.ids_BT], axis=1), order, axis=1)
        return Prompt(ids, np.take_along_axis(mask, order, axis=1), given, self.pad)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row (B,), padding left out."""
        return self.mask_BT.sum(axis=1)

    @property
    def masked(self) -> bool:
        """Whether any row has padding."""
        return not self.mask_BT.all()
