"""Stop strings as a finite automaton over token ids: a compiled decoding loop follows them with one look-up per token.

The strings make one automaton over the bytes of their UTF-8 form (Aho and Corasick, "Efficient string matching", 1975),
and the text of every token is run through it once, from every state. Bytes and not characters, because a piece of a
byte-level vocabulary may end in the middle of a character.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ved_core.errors import GenerationError

START = 0
"""The state before any text."""

_MAX_CELLS = 2**27  # five bytes each
_BLOCK_CELLS = 2**22  # what is computed at a time, so that building needs little more than the result
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


class StopStrings(NamedTuple):
    """From a state, after token v: the state reached, and whether a stop string ended within the text of v.

    `next_state` is int32 (S, V) and `stops` is bool (S, V); both are shared and read-only. The first state is START.
    """

    next_state: NDArray[np.int32]
    stops: NDArray[np.bool_]

    def follow(self, ids: ArrayLike, mask: ArrayLike | None = None) -> NDArray[np.int32]:
        """Return the states (B,) that prompts of integers (B, T) lead to; tokens where `mask` (B, T) is 0 are skipped.

        Raises GenerationError.
        """
        tokens = np.asarray(ids)
        kept = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask).astype(bool)
        if tokens.ndim != 2 or tokens.dtype.kind not in "ui" or kept.shape != tokens.shape:
            raise GenerationError(
                f"stop_strings: the prompt must be integers (B, T) with a mask of the same shape, not {tokens.dtype} "
                f"of shape {tokens.shape} with a mask of shape {kept.shape}"
            )
        size = self.next_state.shape[1]
        if ((tokens < 0) | (tokens >= size))[kept].any():
            raise GenerationError(f"stop_strings: the prompt has ids outside of the vocabulary (0 to {size - 1})")
        states = np.full(len(tokens), START, np.int32)
        for column, keep in zip(tokens.T, kept.T, strict=True):
            states[keep] = self.next_state[states[keep], column[keep]]
        return states


def stop_strings(tokenizer: Any, strings: str | Sequence[str], vocab_size: int) -> StopStrings:
    """Return the automaton of `strings` over the ids below `vocab_size`, the V of the model.

    A token's text is what it adds in the middle of a sequence. Special tokens have the text of their name, and ids that
    the tokenizer does not know have none. Raises GenerationError.
    """
    words = (strings,) if isinstance(strings, str) else tuple(strings) if isinstance(strings, Iterable) else (strings,)
    for word in words:
        if not isinstance(word, str):
            raise GenerationError(f"stop_strings must be strings, not {type(word).__name__}")
        if not word:
            raise GenerationError("stop_strings has an empty string, which would stop at once; remove it")
    if not words:
        raise GenerationError("stop_strings is empty; give at least one string, or None")
    if tokenizer is None:
        raise GenerationError("stop_strings needs the tokenizer; give tokenizer=")
    if vocab_size < 1:
        raise GenerationError(f"stop_strings: vocab_size must be positive, not {vocab_size}")
    return _cached(tokenizer, len(tokenizer), words, vocab_size)


@lru_cache(maxsize=4)  # each may take hundreds of megabytes
def _cached(tokenizer: Any, size: int, words: tuple[str, ...], vocab_size: int) -> StopStrings:
    """`size` is part of the key because tokens can be added to a tokenizer."""
    try:
        patterns = [word.encode() for word in words]
    except UnicodeEncodeError as error:
        raise GenerationError(f"stop_strings: {error.object!r} is not text: it holds half a character") from error
    step, ends = _automaton(patterns, _MAX_CELLS // max(vocab_size, 256))
    texts = [b""] * vocab_size
    for token, text in _token_bytes(tokenizer, vocab_size):
        texts[token] = text
    tables = _tables(step, ends, texts)
    if not tables.stops.any():
        raise GenerationError(
            f"stop_strings: no token can complete {' or '.join(map(repr, words))}; "
            "write them as the tokenizer decodes them (case, spaces, accents)"
        )
    for table in tables:
        table.flags.writeable = False
    return tables


def _automaton(patterns: Sequence[bytes], max_states: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the state after each byte, int32 (S, 256), and the states where a pattern ends, bool (S,)."""
    children: list[dict[int, int]] = [{}]
    ending: set[int] = set()
    for pattern in patterns:
        if len(children) + len(pattern) > max_states:
            raise GenerationError(
                f"stop_strings are too long together: over {max_states} bytes at this vocabulary; "
                "give fewer or shorter strings"
            )
        state = START
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
            state = children[state][byte]
        ending.add(state)

    step = np.zeros((len(children), 256), np.int32)
    ends = np.isin(np.arange(len(children)), list(ending))
    fallback = [START] * len(children)  # the state of the longest proper suffix that is the beginning of a pattern
    waiting = deque([START])
    while waiting:
        state = waiting.popleft()
        step[state] = step[fallback[state]]
        ends[state] |= ends[fallback[state]]
        for byte, child in children[state].items():
            fallback[child] = int(step[state, byte])
            step[state, byte] = child
            waiting.append(child)
    return step, ends


def _tables(step: NDArray[np.int32], ends: NDArray[np.bool_], texts: Sequence[bytes]) -> StopStrings:
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    flat = np.frombuffer(b"".join(texts), np.uint8)
    next_state = np.empty((len(step), len(texts)), np.int32)
    next_state[:] = np.arange(len(step))[:, None]
    stops = np.zeros(next_state.shape, bool)
    rows = max(1, _BLOCK_CELLS // len(texts))
    for first in range(0, len(step), rows):
        block = slice(first, first + rows)
        active = np.flatnonzero(lengths)
        position = 0
        while len(active):
            reached = step[next_state[block, active], flat[starts[active] + position]]
            next_state[block, active] = reached
            stops[block, active] |= ends[reached]
            position += 1
            active = active[lengths[active] > position]
    return StopStrings(next_state, stops)


def _token_bytes(tokenizer: Any, vocab_size: int) -> Iterable[tuple[int, bytes]]:
    """Yield each id below `vocab_size` that the tokenizer knows, with the text that its token adds in mid-sequence."""
    to_string = tokenizer.convert_tokens_to_string
    # Asked of the decoder itself, because there is no one attribute that says so.
    letters = _byte_letters() if to_string(["Ã©"]) == "é" else {}
    has_byte_pieces = to_string(["<0xC3>", "<0xA9>"]) == "é"
    context = _context(tokenizer)
    base = to_string(context)
    for token, index in tokenizer.get_vocab().items():
        if index >= vocab_size:
            continue
        if has_byte_pieces and (piece := _BYTE_PIECE.fullmatch(token)):
            yield index, bytes.fromhex(piece[1])
        elif letters and all(letter in letters for letter in token):
            yield index, bytes(letters[letter] for letter in token)
        else:
            yield index, to_string([*context, token])[len(base) :].encode()


def _context(tokenizer: Any) -> list[str]:
    """Tokens to stand before one, since a decoder trims the first; a vocabulary may lack the letters for any."""
    word = "abcdef"
    return tokenizer.convert_ids_to_tokens(tokenizer(word, add_special_tokens=False)["input_ids"]) or [word]


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2): itself if it is printed, or from U+0100.

    Space, soft hyphen and the control characters have no print of their own.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
