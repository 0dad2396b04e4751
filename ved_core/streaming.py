"""Ids as they come -> text, in pieces that never have to be taken back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ved_core.errors import GenerationError

_REPLACEMENT = "\ufffd"  # what decoders show for the bytes of an unfinished character
_MOST_REPLACED = 32  # longer runs are not unfinished but wrong
_UNSETTLED = 6  # letters after which the clean-up of spaces changes nothing: "do n ' t" -> "don't"
_WINDOW = 64  # tokens that are decoded again and again, before the older half is dropped
_OVERLAP = 8  # letters, already given, with which a new window begins: decoders may trim the beginning of a text


class TextStream:
    """The text of one row of ids, given piece by piece as the ids come.

    The pieces together are `decode` of all ids. Held back is what later ids may change: an unfinished character, and a
    space with less than 6 letters after it, which a clean-up may drop. Should a decoder rewrite more than that, the
    stream goes on at the same length; this is known of byte-fallback vocabularies alone, for bytes that are no UTF-8.
    """

    _is_prompt: bool
    _ids: list[int]
    _given: str  # of the text of `_ids`

    def __init__(self, decode: Callable[[NDArray[np.int64]], list[str]], skip_prompt: bool = True) -> None:
        """`decode` gives the text of integers (1, T), as `Processor.decode` does.

        With `skip_prompt` what is put first counts as the prompt, which has no text here.
        """
        self.decode = decode
        self.skip_prompt = skip_prompt
        self._reset()

    def put(self, ids: ArrayLike) -> str:
        """Return the text that has become certain by `ids`, integers of shape (), (T,) or (1, T).

        Raises GenerationError.
        """
        tokens = np.asarray(ids)
        if tokens.dtype.kind not in "ui" and tokens.size:
            raise GenerationError(f"streamer: ids must be integers, not {tokens.dtype}")
        if tokens.ndim > 2 or (tokens.ndim == 2 and len(tokens) != 1):
            raise GenerationError(f"streamer: only one row can be streamed, not ids of shape {tokens.shape}")
        if self._is_prompt:
            self._is_prompt = False
            return ""
        self._ids.extend(tokens.reshape(-1).tolist())
        text = self._decoded(self._ids)
        piece = self._advance(text, _certain(text))
        patience = 2 if text.endswith(_REPLACEMENT) else 1  # it is better cut when the last character is whole
        if len(self._ids) >= patience * _WINDOW:
            self._shorten(text)
        return piece

    def end(self) -> str:
        """Return the rest of the text; what is put next begins another stream."""
        text = self._decoded(self._ids)
        piece = text[len(self._given) :]
        self._reset()
        return piece

    def _reset(self) -> None:
        self._is_prompt = self.skip_prompt
        self._ids = []
        self._given = ""

    def _decoded(self, ids: list[int]) -> str:
        return self.decode(np.array([ids], np.int64))[0] if ids else ""

    def _advance(self, text: str, length: int) -> str:
        """Return the first `length` letters but those given before; nothing while the decoder sees these otherwise."""
        if not text.startswith(self._given):
            return ""
        piece = text[len(self._given) : length]
        self._given += piece
        return piece

    def _shorten(self, text: str) -> None:
        """Keep the newer half of the ids, if it decodes as the end of the whole, so that the cost stays linear."""
        self._given = text[: len(self._given)]  # a decoder that saw it otherwise for so long will not go back
        half = len(self._ids) // 2
        for cut in range(half, half + 4):  # one of them is not within a character, which has 4 bytes at most
            end = self._decoded(self._ids[cut:])
            given = len(end) - (len(text) - len(self._given))
            if text.endswith(end) and given >= _OVERLAP:
                self._ids, self._given = self._ids[cut:], end[:given]
                return


def _certain(text: str) -> int:
    """Return how much of the beginning of `text` no later id can change."""
    whole = len(text.rstrip(_REPLACEMENT))
    length = whole if len(text) - whole <= _MOST_REPLACED else len(text) - _MOST_REPLACED
    for place in range(max(0, length - _UNSETTLED), length):
        if text[place].isspace():
            return len(text[:place].rstrip())
    return length
