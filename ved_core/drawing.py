"""`draw`: a sheet of images, each with where the decoder looked for every word of its text."""

import functools
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ved_core.attention_maps import Look
from ved_core.errors import VedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, PAGE, EDGE = "#22272e", "#77808a", "#ffffff", "#c9ced4"
WIDTH = 11.0
"""Of the sheet, in inches."""
_TITLE, _HEAD, _GAP = 0.26, 0.34, 0.12
"""Inches above a tile and above an image's tiles, and between tiles."""
_DOTS = 110
"""An inch."""
_MOST_TILES = 1200
"""A picture with more is too tall for its formats and for anyone to look at."""


def draw(looks: Look | Sequence[Look], *, columns: int | None = None, names: Sequence[str] | None = None) -> "Figure":
    """A matplotlib figure: for each image a line with its text and confidence, then the image as the encoder saw it and
    once more for each word, lit where the decoder looked, each as bright as the word's strongest cell allows.

    `columns`: tiles in a row, by default as the images' shape suggests; `names`: of the images. Raises VedError where
    matplotlib is missing or there is too much to draw.
    """
    several = [looks] if isinstance(looks, Look) else list(looks)
    if names is not None and len(names) != len(several):
        raise ValueError(f"{len(names)} names for {len(several)} images")
    tiles = sum(1 + len(look.words) for look in several)
    if not several or tiles > _MOST_TILES:
        raise VedError(f"{tiles} pictures of words do not make a sheet: 1 to {_MOST_TILES} do; draw fewer images")
    make_figure = _figure_maker()
    columns = columns or _columns(several)
    width = (WIDTH - _GAP * (columns + 1)) / columns
    bands = list(_bands(several, columns))
    heights = [sum(_band_height(band, columns, width)) for band in bands]
    total = sum(heights) + _GAP
    figure = make_figure(figsize=(WIDTH, total), facecolor=PAGE, dpi=_DOTS)
    top, first = 0.0, 0
    for band, height in zip(bands, heights, strict=True):
        column = 0
        for look in band:
            name = None if names is None else names[first]
            _block(figure, look, name, top, column, columns, width, total)
            column += 1 + len(look.words)
            first += 1
        top += height
    return figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the path's ending, all of it or nothing. Raises VedError, OSError."""
    path = Path(path)
    check_format(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands for it
        figure.savefig(Path(folder, path.name))
        Path(folder, path.name).replace(path)


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise VedError for an ending that matplotlib does not write, a folder, or one in a folder that is not there."""
    formats = sorted(_figure_maker()().canvas.get_supported_filetypes())
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in formats:
        raise VedError(f"{str(path)!r}: pictures end in {', '.join('.' + name for name in formats)}")
    if path.is_dir() or not path.parent.is_dir():
        raise VedError(f"{str(path)!r}: is a folder, or in none; give a file in a folder that exists")


def _figure_maker() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VedError('drawing needs matplotlib: pip install "ved[show]"') from error

    def make(*arguments: Any, **options: Any) -> Figure:
        figure = Figure(*arguments, **options)
        FigureCanvasAgg(figure)  # never a window
        return figure

    return make


def _columns(looks: Sequence[Look]) -> int:
    """Fewer where images are wide, none that stays empty."""
    ratio = float(np.median([look.grid.width / look.grid.height for look in looks]))
    fitting = 1 if ratio > 16 else 2 if ratio > 6 else 3 if ratio > 2.5 else 4 if ratio > 1.4 else 6
    if len(looks) == 1:
        needed = 1 + len(looks[0].words)
        return max(min(3, fitting), min(fitting, needed))
    return 8 if fitting == 6 else fitting


def _bands(looks: Sequence[Look], columns: int) -> Iterator[list[Look]]:
    """Looks side by side as long as their tiles fit in a row; one with more has a band, and rows, of its own."""
    band: list[Look] = []
    free = columns
    for look in looks:
        if band and 1 + len(look.words) > free:
            yield band
            band, free = [], columns
        band.append(look)
        free -= 1 + len(look.words)
    yield band


def _band_height(band: Sequence[Look], columns: int, width: float) -> tuple[float, float]:
    """Inches of a band's head and of its rows of tiles."""
    tile = max(width * look.grid.height / look.grid.width for look in band)
    rows = math.ceil(max(1 + len(look.words) for look in band) / columns)
    return _HEAD, rows * (_TITLE + tile + _GAP)


def _block(
    figure: Any, look: Look, name: str | None, top: float, column: int, columns: int, width: float, total: float
) -> None:
    """One look, its first tile in this column; `top` and `total`: inches above it and of the whole figure."""
    tiles = min(1 + len(look.words), columns)
    left = _GAP + column * (width + _GAP)
    room = tiles * (width + _GAP) - _GAP
    line = 1 - (top + _HEAD * 0.75) / total
    reading = look.reading
    note = f"{reading.confidence:.1%}" + (f"   {_shortened(name, max(4, int(room * 5)), end=True)}" if name else "")
    text = _shortened(" ".join(reading.text.split()) or "(nothing)", max(4, int(room * 10 - len(note))))
    _write(figure, left / WIDTH, line, text, size=12, color=INK, weight="bold")
    _write(figure, (left + room) / WIDTH, line, note, size=8.5, color=FAINT, ha="right")
    height = width * look.grid.height / look.grid.width
    small = _small(look.image, round(width * _DOTS * 2))
    for tile in range(1 + len(look.words)):
        row, place = divmod(tile, columns)
        x = left + place * (width + _GAP)
        low = top + _HEAD + (row + 1) * (_TITLE + height) + row * _GAP
        axes = figure.add_axes((x / WIDTH, 1 - low / total, width / WIDTH, height / total))
        _tile(axes, look, tile - 1, width, small)


def _tile(axes: Any, look: Look, place: int, room: float, small_HWC: NDArray[np.uint8]) -> None:
    """One word's picture, or at place -1 the image alone; `small_HWC`: the image in no more pixels than are seen."""
    grid = look.grid
    where = {"extent": (0, grid.width, grid.height, 0), "interpolation": "nearest" if grid.width < 150 else "auto"}
    if place < 0:
        axes.imshow(small_HWC, **where)
        _write(axes, 0, 1, "the image", size=9, color=FAINT, transform=axes.transAxes, va="bottom")
    else:
        word = look.words[place]
        axes.imshow(small_HWC.mean(axis=2) / 255, cmap="gray", vmin=-0.2, vmax=1, **where)
        share = word.attention / max(float(word.attention.max()), 1e-12)
        lit = _colours()(0.3 + 0.5 * share)
        lit[..., 3] = 0.75 * share**0.75
        reach = (0, grid.columns * grid.cell[1], grid.rows * grid.cell[0], 0)  # beyond the image, which cuts it
        axes.imshow(lit, extent=reach, interpolation="nearest")
        text = _shortened(word.text, max(4, int(room * 7.5)))
        _write(axes, 0, 1, text, size=10, color=INK, transform=axes.transAxes, va="bottom")
        sure = f"{word.confidence:.1%}"
        _write(axes, 1, 1, sure, size=8, color=FAINT, transform=axes.transAxes, va="bottom", ha="right")
    axes.set(xticks=[], yticks=[], xlim=(0, grid.width), ylim=(grid.height, 0))
    for side in axes.spines.values():
        side.set(color=EDGE, linewidth=0.8)


def _small(image_HWC: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """No wider than so many pixels: a page in full for every word would take gigabytes."""
    from PIL import Image

    image = Image.fromarray(image_HWC)
    if image.width <= most:
        return image_HWC
    return np.asarray(image.resize((most, max(1, round(image.height * most / image.width))), Image.Resampling.BOX))


def _write(where: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Text as it is: a dollar sign begins no formula."""
    where.text(x, y, text, fontfamily=_fonts(), parse_math=False, **options)


def _shortened(text: str, most: int, end: bool = False) -> str:
    if len(text) <= most:
        return text
    return "…" + text[-most + 1 :] if end else text[: most - 1] + "…"


@functools.cache
def _colours() -> Any:
    import matplotlib

    return matplotlib.colormaps["YlOrRd"]


@functools.cache
def _fonts() -> list[str]:
    """DejaVu, which comes with matplotlib, and for letters that it has not what the machine has."""
    from matplotlib.font_manager import fontManager

    names = {entry.name for entry in fontManager.ttflist}
    return ["DejaVu Sans", *sorted(name for name in names if "CJK" in name or name.startswith("Noto Sans"))]
