"""Sample images, each with what was read in it and what stands there, as one picture."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from ved_flax.train.evaluation import Prediction

INK, FAINT, PAGE, CARD = "#22272e", "#77808a", "#f3f4f6", "#ffffff"
EDGE, RIGHT, WRONG, MISSED = "#dfe2e6", "#1c7d4d", "#c0392b", "#fbd9d3"
_WIDTH, _GAP, _INSIDE = 1320, 20, 14
_FOOT = 24
_MOST_HEIGHT = 260
"""Of one image, in pixels."""
_MOST_LINES = 4


def sheet(step: int, evaluation: Any) -> "Image":
    """The sheet of an `Evaluation`'s pictures: wrong characters in red, what was missed marked in the reference."""
    from PIL import Image, ImageDraw

    shapes = [pixels.shape for pixels, _ in evaluation.pictures]
    columns = _columns(shapes)
    width = (_WIDTH - _GAP * (columns + 1)) // columns
    cards = [_card(pixels, prediction, width) for pixels, prediction in evaluation.pictures]
    rows = [range(len(cards))[i : i + columns] for i in range(0, len(cards), columns)]
    heights = [max(cards[place].height for place in row) + _FOOT for row in rows]
    top = 74
    page = Image.new("RGB", (_WIDTH, top + sum(heights) + _GAP * (len(rows) + 1) - _GAP // 2), PAGE)
    draw = ImageDraw.Draw(page)
    title, font = f"Step {step:,}", _font(26, bold=True)
    draw.text((_GAP, 18), title, INK, font)
    right = sum(prediction.prediction in prediction.references for _, prediction in evaluation.pictures)
    scores = "   ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in evaluation.metrics.items())
    note = f"{right} of these {len(cards)} right      all {len(evaluation.predictions):,}:   {scores}"
    draw.text((_GAP + font.getlength(title) + 36, 26), note, FAINT, _font(16))
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, place in enumerate(row):
            x = _GAP + column * (width + _GAP)
            draw.rounded_rectangle((x, y, x + width, y + height), 8, CARD)
            page.paste(cards[place], (x, y), _rounded(cards[place].size))
            prediction = evaluation.pictures[place][1]
            foot, small = y + height - _FOOT - 2, _font(12)
            draw.text((x + _INSIDE, foot), _shortened(prediction.id, width - 100, 12), FAINT, small)
            draw.text((x + width - _INSIDE, foot), f"{prediction.confidence:.1%}", FAINT, small, anchor="ra")
        y += height + _GAP
    return page


def _columns(shapes: Sequence[tuple[int, ...]]) -> int:
    """More where images are narrow."""
    if not shapes:
        return 1
    ratio = float(np.median([shape[1] / shape[0] for shape in shapes]))
    return 1 if ratio > 16 else 2 if ratio > 6 else 3 if ratio > 2 else 4


@functools.cache
def _font(size: int, bold: bool = False) -> Any:
    """DejaVu, which comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


@functools.cache
def _font_of(letter: str, size: int) -> Any:
    """A font that has the letter: DejaVu has none of CJK, and what the machine has is looked through. Where no font has
    it, a box is drawn."""
    from matplotlib.font_manager import fontManager, get_font
    from PIL import ImageFont

    font = _font(size)
    if get_font(font.path).get_char_index(ord(letter)):
        return font
    for path in sorted({entry.fname for entry in fontManager.ttflist}, key=lambda path: "CJK" not in path):
        if get_font(path).get_char_index(ord(letter)):
            return ImageFont.truetype(path, size)
    return font


def _rounded(size: tuple[int, int]) -> "Image":
    from PIL import Image, ImageDraw

    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 8, 255)
    return mask


def _card(pixels: np.ndarray, prediction: "Prediction", width: int) -> "Image":
    from PIL import Image, ImageDraw

    inner = width - 2 * _INSIDE
    image = Image.fromarray(pixels)
    scale = min(inner / image.width, _MOST_HEIGHT / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC if scale < 3 else Image.Resampling.NEAREST)
    reference = nearest(prediction.prediction, prediction.references)
    right = prediction.prediction == reference
    read, there = marked(prediction.prediction, reference)
    lines = _wrapped([(letter, RIGHT if right else WRONG if odd else INK) for letter, odd in read], inner - 74, 17)
    below = [] if right else _wrapped([(letter, MISSED if odd else "") for letter, odd in there], inner - 74, 17)
    height = _INSIDE * 2 + image.height + 12 + 26 * (max(1, len(lines)) + (max(1, len(below)) if not right else 0))
    card = Image.new("RGB", (width, height), CARD)
    draw = ImageDraw.Draw(card)
    left = _INSIDE + (inner - image.width) // 2
    card.paste(image, (left, _INSIDE))
    draw.rectangle((left - 1, _INSIDE - 1, left + image.width, _INSIDE + image.height), outline=EDGE)
    y = _INSIDE + image.height + 12
    y = _text(draw, y, "read", lines, as_marks=False)
    if not right:
        y = _text(draw, y, "truth", below, as_marks=True)
    return card


def _text(draw: Any, y: int, label: str, lines: list[list[tuple[str, str]]], *, as_marks: bool) -> int:
    """Lines of letters, each in its colour or on it; gives the height behind them."""
    draw.text((_INSIDE, y + 5), label, FAINT, _font(12))
    for line in lines or [[]]:
        x = float(_INSIDE + 46)
        for letter, color in line:
            font = _font_of(letter, 17)
            step = font.getlength(letter)
            if as_marks and color:
                draw.rectangle((x, y, x + step, y + 23), color)
            draw.text((x, y), letter, INK if as_marks else color, font)
            x += step
        y += 26
    if not any(lines):
        draw.text((_INSIDE + 46, y - 24), "(nothing)", FAINT, _font(14))
    return y


def _wrapped(letters: list[tuple[str, str]], width: float, size: int) -> list[list[tuple[str, str]]]:
    """Letters in lines of a width, the last cut where there are too many."""
    lines: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for letter, color in letters:
        letter = letter if letter.isprintable() else "␤" if letter == "\n" else "·"
        step = _font_of(letter, size).getlength(letter)
        if used + step > width:
            if len(lines) == _MOST_LINES:
                lines[-1][-1:] = [("…", FAINT)]
                break
            lines.append([])
            used = 0.0
        lines[-1].append((letter, color))
        used += step
    return lines


def _shortened(text: str, width: float, size: int) -> str:
    """Its end, which tells names apart."""
    font = _font(size)
    text = "".join(letter if letter.isprintable() else "·" for letter in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[max(1, len(text) // 20) :]
    return "…" + text


def nearest(prediction: str, references: Sequence[str]) -> str:
    """The reference with the fewest edits."""
    from rapidfuzz.distance import Levenshtein

    return min(references, key=lambda reference: Levenshtein.distance(prediction, reference))


def marked(prediction: str, reference: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The letters of both, each with whether it is wrong, or was missed or misread."""
    from rapidfuzz.distance import Levenshtein

    read, there = [False] * len(prediction), [False] * len(reference)
    for edit in Levenshtein.opcodes(prediction, reference):
        if edit.tag != "equal":
            read[edit.src_start : edit.src_end] = [True] * (edit.src_end - edit.src_start)
            there[edit.dest_start : edit.dest_end] = [True] * (edit.dest_end - edit.dest_start)
    return list(zip(prediction, read, strict=True)), list(zip(reference, there, strict=True))
