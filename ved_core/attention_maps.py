"""Where a decoder looked: cross-attention over image tokens as maps over the image, and generated tokens as words."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ved_core.configs.encoder import EncoderConfig
from ved_core.errors import GenerationError

if TYPE_CHECKING:
    from ved_core.pipeline import Reading

UNITS = ("word", "token")
"""What attention can be shown of."""

_REPLACEMENT = "\ufffd"  # what decoders show for the bytes of an unfinished character
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"  # kana and ideographs
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """Where an encoder's output tokens lie in an image of (height, width) pixels: `leading` tokens that have no place,
    then rows * columns cells, row by row from the top left corner."""

    height: int
    width: int
    rows: int
    columns: int
    cell: tuple[int, int]
    """Height and width in pixels; the last ones may reach beyond the image."""
    leading: int

    @classmethod
    def of(cls, config: EncoderConfig, height: int, width: int) -> Self:
        """That of an encoder for pixel_values of this size."""
        high, wide = config.cell
        filled = (high - 1, wide - 1) if config.fills_cells else (0, 0)
        rows, columns = (height + filled[0]) // high, (width + filled[1]) // wide
        return cls(height, width, rows, columns, config.cell, config.leading_tokens)

    @property
    def tokens(self) -> int:
        """P, how many there are."""
        return self.leading + self.rows * self.columns

    def cells(self, weights: NDArray[np.floating]) -> NDArray[np.floating]:
        """Weights (..., P) of all tokens as those of the cells (..., rows, columns). Raises ValueError."""
        if weights.shape[-1] != self.tokens:
            raise ValueError(f"{weights.shape[-1]} weights are not of {self.leading} + {self.rows} x {self.columns}")
        return weights[..., self.leading :].reshape(*weights.shape[:-1], self.rows, self.columns)

    def pixels(self, map_RC: NDArray[np.floating]) -> NDArray[np.floating]:
        """A map (rows, columns) over the pixels (height, width), 0 where no token looks: each cell its rectangle."""
        spread = map_RC.repeat(self.cell[0], axis=0).repeat(self.cell[1], axis=1)[: self.height, : self.width]
        missing = self.height - spread.shape[0], self.width - spread.shape[1]
        return np.pad(spread, ((0, missing[0]), (0, missing[1])))


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a text, or a token: letters `start` to `end`. `confidence`: geometric mean of its tokens'
    probabilities; `attention`: float32 (rows, columns), the mean of its tokens' over the image's cells; `elsewhere`:
    the share that went to tokens without a place. Both together sum to 1."""

    text: str
    start: int
    end: int
    confidence: float
    attention: NDArray[np.float32]
    elsewhere: float


@dataclasses.dataclass(frozen=True)
class Look:
    """An image as the encoder saw it, (H, W, 3) uint8, resized and padded; what was read; where the decoder looked."""

    image: NDArray[np.uint8]
    reading: "Reading"
    words: tuple[Word, ...]
    grid: TokenGrid

    def heat(self, place: int) -> NDArray[np.floating]:
        """The attention of one word over the pixels (H, W), between 0 and 1, its strongest cell."""
        attention = self.words[place].attention
        return self.grid.pixels(attention / max(float(attention.max()), 1e-12))


def look_at(
    image: NDArray[np.uint8],
    reading: "Reading",
    ids: Sequence[int],
    log_probs_N: NDArray[np.floating],
    attention_NP: NDArray[np.floating],
    grid: TokenGrid,
    decode: Callable[[Sequence[int]], str],
    by: str = "word",
) -> Look:
    """A `Look` out of one sequence of ids, the last N of which were generated. Raises GenerationError for a unit that
    there is not."""
    check_unit(by)
    prompt = len(ids) - len(log_probs_N)
    words = []
    for start, end, tokens in group(reading.text, token_spans(ids, decode), by):
        own = [token - prompt for token in tokens if token >= prompt]
        if not own:
            continue
        weights_P = np.asarray(attention_NP[own], np.float32).mean(axis=0)
        words.append(
            Word(
                reading.text[start:end],
                start,
                end,
                float(np.exp(np.mean(log_probs_N[own], dtype=np.float64))),
                grid.cells(weights_P),
                float(weights_P[: grid.leading].sum()),
            )
        )
    return Look(image, reading, tuple(words), grid)


def token_spans(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[tuple[int, int]]:
    """The letters of the text that each token stands for; none for special tokens. Tokens that only together make
    letters, as the bytes of a character, stand for the same ones."""
    if not ids:
        return []
    texts = [decode(ids[: count + 1]) for count in range(len(ids))]
    # As far as an earlier beginning was right, later ones are too, even if bytes of an unfinished character hide it.
    common = [_common(text.rstrip(_REPLACEMENT), texts[-1]) for text in texts[:-1]] + [len(texts[-1])]
    ends = np.maximum.accumulate(common).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    for place in reversed(range(len(spans) - 1)):
        silent = texts[place] == (texts[place - 1] if place else "") and not texts[place].endswith(_REPLACEMENT)
        if spans[place][0] == spans[place][1] and not silent:
            spans[place] = spans[place + 1]
    return spans


def group(text: str, spans: Sequence[tuple[int, int]], by: str) -> list[tuple[int, int, list[int]]]:
    """Start, end and tokens of each word, or of each token that is more than blanks. Ideographs and kana are words
    each."""
    bounds = [match.span() for match in _WORD.finditer(text)]
    if by == "token":
        bounds = list(dict.fromkeys(_stripped(text, *span) for span in spans if text[slice(*span)].strip()))
    return [(start, end, [i for i, span in enumerate(spans) if _meet(text, span, start, end)]) for start, end in bounds]


def chosen(name: str, wanted: Sequence[int] | None, count: int) -> tuple[int, ...] | None:
    """Places of layers or heads counted from the front, negative ones from the back; None for all. Raises
    GenerationError."""
    if wanted is None:
        return None
    if not wanted or not all(-count <= place < count for place in wanted):
        raise GenerationError(f"{name} = {list(wanted)}: the decoder has {count}, 0 to {count - 1}")
    return tuple(sorted({place % count for place in wanted}))


def check_unit(by: str) -> None:
    """Raise GenerationError for what is none of UNITS."""
    if by not in UNITS:
        raise GenerationError(f"by = {by!r} should be one of {', '.join(UNITS)}")


def _common(one: str, other: str) -> int:
    """How many letters both begin with."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def _meet(text: str, span: tuple[int, int], start: int, end: int) -> bool:
    """Whether a token has more than blanks of the letters from `start` to `end`."""
    return bool(text[max(span[0], start) : min(span[1], end)].strip())


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
