"""The output of Donut models (Kim et al., arXiv:2111.15664): tags such as `<s_menu>...</s_menu>` around text.

`token2json` reads it, and `DonutGrammar` keeps a decoder to it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ved_core.errors import GenerationError, ProcessorError
from ved_core.stop_strings import START, stop_strings

_SEP = "<sep/>"
_KEY = re.compile(r"<s_[^<>]+>")
_CATEGORY = re.compile(r"<(?!s_)[^<>/]+/>", re.IGNORECASE)
_TAG_STARTS = (*(f"<{slash}{s}_" for slash in ("", "/") for s in "sSſ"), _SEP)

_DEEPEST = 100
_WORK = 2**26, 2**7  # characters that may be looked at, for any text and for each of its characters


def token2json(text: str, added: Collection[str] = ()) -> dict[str, Any] | list[Any]:
    """Return the object that `text` spells, or a list of objects if `<sep/>` stands between them at the top.

    Keys hold text, objects, or lists of either. A leaf among `added`, the added tokens of the tokenizer, loses its
    brackets if it looks like `<name/>`. Any text has a result, that of transformers' `DonutProcessor.token2json`:
    a key ends at the first closing tag of its name, whatever its case; a key that comes twice keeps its last value; an
    opening tag without a closing one is cut out; text beside tags is dropped; and text without any whole tag is
    `{"text_sequence": text}`. It differs in the letters whose case folding is irregular (a dotted capital I), which are
    not taken for one another here.

    Raises ProcessorError if keys are nested deeper than 100, or where so many tags are damaged that the time would not
    be linear in the length; transformers fails with a RecursionError, or takes hours.
    """
    if not isinstance(text, str):
        raise ProcessorError(f"token2json wants the text of one output, not {type(text).__name__}; decode its ids")
    parser = _Parser(frozenset(added), _WORK[0] + _WORK[1] * len(text))
    items, rest = parser.parse(text, _folded(text), 0)
    if len(items) > 1:
        return items if items[-1] else items[:-1]
    return items[0] or {"text_sequence": rest}


class _Parser:
    def __init__(self, added: frozenset[str], work: int) -> None:
        self.added = added
        self.work = work

    def parse(self, text: str, folded: str, depth: int) -> tuple[list[dict[str, Any]], str]:
        """Return the objects between the separators, of which the last may be empty, and what follows the last tag.

        `folded` is `text` without its case, letter by letter.
        """
        if depth > _DEEPEST:
            raise ProcessorError(f"keys are nested more than {_DEEPEST} deep; this is not the output of a Donut model")
        items: list[dict[str, Any]] = [{}]
        place = 0
        after_key = False
        while (start := folded.find("<s_", place)) >= 0 and (inside := text.find(">", start) + 1):
            tag = text[start:inside]
            closing = f"</{folded[start + 1 : inside]}"
            end = folded.find(closing, place)
            if end < 0:
                self._spend(len(text) - place)
                stop = len(text.rstrip()) if after_key else len(text)
                text, folded = _without(tag, text[place:stop], folded[place:stop])
                place, after_key = 0, False
                continue
            last = folded.find(closing, inside)  # not `end` where a stray closing tag stands before the opening one
            self._spend(max(last, inside) - place)
            if last >= 0 and (value := self._value(text[inside:last], folded[inside:last], depth)) is not None:
                items[-1][tag[3:-1]] = value
            place = end + len(closing)
            while place < len(text) and text[place].isspace():
                place += 1
            after_key = not text.startswith(_SEP, place)
            if not after_key:
                place += len(_SEP)
                items.append({})
        return items, text[place:].rstrip() if after_key else text[place:]

    def _value(self, text: str, folded: str, depth: int) -> Any:
        """Return what a key holds, or None if it holds keys that hold nothing."""
        if "<s_" in text and "</s_" in text:
            items, _ = self.parse(text, folded, depth + 1)
            objects = items if items[-1] else items[:-1]
            return objects[0] if len(objects) == 1 else objects or None
        leaves = [self._leaf(leaf.strip()) for leaf in text.split(_SEP)]
        return leaves[0] if len(leaves) == 1 else leaves

    def _leaf(self, text: str) -> str:
        return text[1:-2] if text in self.added and text[0] == "<" and text[-2:] == "/>" else text

    def _spend(self, work: int) -> None:
        self.work -= work
        if self.work < 0:
            raise ProcessorError("too many damaged tags to read in reasonable time; did a Donut model write this text?")


def _without(tag: str, text: str, folded: str) -> tuple[str, str]:
    """Cut `tag` out of `text`, and the same letters out of `folded`."""
    parts = text.split(tag)
    place = 0
    kept = []
    for part in parts:
        kept.append(folded[place : place + len(part)])
        place += len(part) + len(tag)
    return "".join(parts), "".join(kept)


def _folded(text: str) -> str:
    """`text` without its case; letters that would become several are kept, so that places in it are the same."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(letter if len(fold := letter.casefold()) > 1 else fold for letter in text)


_TEXT, _OPENING, _CLOSING, _SEPARATOR, _END, _OTHER = range(6)


class _Holds(IntEnum):
    """What an open key can still hold: its first separator or key decides."""

    ANYTHING = 0
    TEXTS = 1
    OBJECTS = 2


@dataclass(slots=True)
class _Open:
    key: int
    closing: int
    holds: _Holds = _Holds.ANYTHING


class DonutGrammar:
    """A `prefix_allowed_tokens_fn` under which every finished output is well-formed.

    Any key may open inside of any other but itself, for `token2json` ends a key at the first closing tag of its name.
    Only the innermost key can close. Text stands inside of keys, up to the first key in them, and cannot spell a tag.
    `<sep/>` stands between texts and after a closed key. The end comes when all is closed; padding, unknown and other
    special tokens never do, but categories such as `<yes/>` are text. So the nesting of the tags is that of
    `token2json(text)`, except that a key which comes twice in one object keeps its last value, and that text before
    the first key of an object, and an object without keys, are dropped.

    A tag `<s_...>` that the vocabulary cannot close, such as the start token of a task, opens nothing.
    """

    def __init__(
        self,
        tokenizer: Any,
        start: str | None = None,
        *,
        eos_token_id: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """`start` is the token after which the output begins; by default it begins with the first.

        `max_length` counts all tokens, prompt and end included: what is left of it always suffices to close what is
        open. Raises GenerationError.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        if eos is None:
            raise GenerationError("DonutGrammar needs the end token, which the tokenizer lacks; give eos_token_id")
        if start is not None and start not in vocabulary:
            raise GenerationError(f"start={start!r} is not one token of the vocabulary; give the task's start token")
        pad = tokenizer.pad_token_id
        self.max_length = max_length
        self._start = None if start is None else vocabulary[start]
        self._eos = np.array([eos])
        self._finished = np.array([eos if pad is None else pad])

        roles = _roles(tokenizer, eos)
        names = {index: token for token, index in vocabulary.items()}
        self._roles = roles
        self._openings = np.flatnonzero(roles == _OPENING)
        self._separators = np.flatnonzero(roles == _SEPARATOR)
        if not len(self._openings):
            raise GenerationError("DonutGrammar: the tokenizer has no pair <s_key>, </s_key> among its added tokens")
        # Keys that differ in case alone are one key: token2json takes the closing tag of either for the other's.
        folds = [names[int(index)].casefold() for index in self._openings]
        self._keys = np.array([folds.index(fold) for fold in folds])
        self._pairs = {
            int(index): (int(key), vocabulary["</" + names[int(index)][1:]])
            for index, key in zip(self._openings, self._keys, strict=True)
        }
        texts = np.flatnonzero(roles == _TEXT)
        spelled = stop_strings(tokenizer, _TAG_STARTS, len(roles))
        self._next_state = spelled.next_state
        self._texts = [texts[~row[texts]] for row in spelled.stops]

    def __call__(self, batch_id: int, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the ids that may follow `ids`, the integers (T,) of one row so far. Raises GenerationError.

        Rows are told apart by their ids alone, so that beams can change places. A finished row gets padding.
        """
        array = self._output(ids)
        used = len(np.asarray(ids))  # not np.size, which a PyTorch tensor does not answer
        tokens: list[int] = array.tolist()
        roles: list[int] = self._roles[array].tolist()
        stack: list[_Open] = []
        text_start = 0
        after_key = False
        for place, role in enumerate(roles):
            if role == _TEXT:
                after_key = False
                continue
            if role == _END and place > 0:  # the first token may be an end token that starts the decoder
                return self._finished
            if not self._follow(stack, tokens[place], role, after_key):
                raise GenerationError(f"DonutGrammar: token {tokens[place]} is out of place in {tokens}")
            text_start = place + 1
            after_key = role == _CLOSING

        left = np.inf if self.max_length is None else self.max_length - used - 1
        if left < len(stack):
            raise GenerationError(
                f"max_length={self.max_length} leaves no room to close {len(stack)} open keys and end after "
                f"{used} tokens; raise it by {len(stack) - left:.0f} or more"
            )
        allowed = [np.array([stack[-1].closing])] if stack else [self._eos]
        if left > len(stack):
            if stack and stack[-1].holds != _Holds.OBJECTS:
                allowed.append(self._texts[self._state(tokens[text_start:])])
            if _may_separate(stack, after_key):
                allowed.append(self._separators)
        if left > len(stack) + 1 and (not stack or stack[-1].holds != _Holds.TEXTS):
            allowed.append(self._openings[~np.isin(self._keys, [each.key for each in stack])])
        return np.concatenate(allowed)

    def _output(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return `ids` from the start token on."""
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "ui"):
            raise GenerationError(f"DonutGrammar wants integers (T,), not {tokens.dtype} of shape {tokens.shape}")
        tokens = tokens.astype(np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self._roles):
            raise GenerationError(f"DonutGrammar: ids outside of the vocabulary (0 to {len(self._roles) - 1})")
        if self._start is None:
            return tokens
        places = np.flatnonzero(tokens == self._start)
        if not len(places):
            raise GenerationError(f"DonutGrammar: the start token {self._start} is not in the prompt {tokens.tolist()}")
        return tokens[places[0] :]

    def _follow(self, stack: list[_Open], token: int, role: int, after_key: bool) -> bool:
        """Change `stack` by a token that is not text; False if the grammar forbids it there."""
        if role == _OPENING:
            key, closing = self._pairs[token]
            if any(each.key == key for each in stack) or (stack and stack[-1].holds == _Holds.TEXTS):
                return False
            if stack:
                stack[-1].holds = _Holds.OBJECTS
            stack.append(_Open(key, closing))
        elif role == _CLOSING:
            return bool(stack) and stack.pop().closing == token
        elif role == _SEPARATOR:
            if not _may_separate(stack, after_key):
                return False
            if stack and stack[-1].holds == _Holds.ANYTHING:
                stack[-1].holds = _Holds.TEXTS
        return True

    def _state(self, tokens: list[int]) -> int:
        """How much of a tag the text so far may be spelling."""
        state = START
        for token in tokens:
            state = self._next_state[state, token]
        return int(state)


def _may_separate(stack: list[_Open], after_key: bool) -> bool:
    return after_key or (bool(stack) and stack[-1].holds != _Holds.OBJECTS)


def _roles(tokenizer: Any, eos: int) -> NDArray[np.int8]:
    """Return what each id is to the grammar, int8 (V,)."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added: dict[str, int] = tokenizer.get_added_vocab()
    special = set(tokenizer.all_special_ids)
    special.update(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    roles = np.full(max(*vocabulary.values(), eos) + 1, _OTHER, np.int8)
    for token, index in vocabulary.items():
        if index not in special and token not in added:
            roles[index] = _TEXT
        elif token == _SEP:
            roles[index] = _SEPARATOR
        elif _CATEGORY.fullmatch(token) or (index not in special and not token.casefold().startswith(("<s_", "</s_"))):
            roles[index] = _TEXT
    for token, index in added.items():
        if _KEY.fullmatch(token) and (closing := "</" + token[1:]) in added:
            roles[index] = _OPENING
            roles[added[closing]] = _CLOSING
    roles[eos] = _END
    return roles
