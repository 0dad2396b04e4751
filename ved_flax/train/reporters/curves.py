"""Loss, learning rate and evaluation metrics over steps, as one picture."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ved_flax.train.metrics import LOWER_IS_BETTER, METRICS
from ved_flax.train.reporters.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

INK, FAINT, GRID = "#22272e", "#8a929c", "#e6e8eb"
BLUE, ORANGE, GREEN = "#2864b4", "#c8641e", "#23875a"
NAMES = {"exact_match": "Exact match", "cer": "Character error rate", "wer": "Word error rate", "bleu": "BLEU"}
NAMES |= {"chrf": "chrF", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
_COLUMNS = 3
_MOST_POINTS = 2000


def curves(history: History) -> "Image":
    """The picture of what a job has recorded."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    shown = [name for name in METRICS if any(name in values for values in history.evaluations.values())]
    rows = -(-len(shown) // _COLUMNS)
    style: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": FAINT}
    style |= {"xtick.color": FAINT, "ytick.color": FAINT, "axes.edgecolor": GRID}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 4.9 + 2.4 * rows), dpi=130, facecolor="white", layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        grid = figure.add_gridspec(2 + rows, _COLUMNS, height_ratios=[3.4, 1.3, *[2.2] * rows])
        loss = figure.add_subplot(grid[0, :])
        _draw_loss(loss, *history.series("loss"))
        rate = figure.add_subplot(grid[1, :], sharex=loss)
        _draw_rate(rate, *history.series("learning_rate"))
        for place, name in enumerate(shown):
            axes = figure.add_subplot(grid[2 + place // _COLUMNS, place % _COLUMNS])
            _draw_metric(axes, name, *history.metric(name))
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw_loss(axes: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    _prepare(axes, "Loss")
    good = np.isfinite(values)
    if not good.any():
        _empty(axes)
        return
    smooth = smoothed(values, max(1, len(values) // 80))
    shown = np.unique(np.linspace(0, len(steps) - 1, _MOST_POINTS).astype(int))
    positive = values[good].min() > 0
    if positive and values[good].max() / values[good].min() > 20:
        _logarithmic(axes)
    axes.plot(steps[shown], values[shown], color=BLUE, alpha=0.28, linewidth=0.8)
    axes.plot(steps[shown], smooth[shown], color=BLUE, linewidth=2)
    bad = steps[~good]
    for step in bad[:50]:
        axes.axvline(step, color=ORANGE, linewidth=1, alpha=0.7)
    if len(bad):
        axes.text(0.99, 0.95, f"not finite in {len(bad)} step(s)", transform=axes.transAxes, color=ORANGE, ha="right",
                  va="top")  # fmt: skip
    _mark(axes, steps[good][-1], smooth[good][-1], f"{smooth[good][-1]:.3g}", BLUE)
    axes.tick_params(labelbottom=False)


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic axis labelled 1, 2, 5, 10."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_rate(axes: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    _prepare(axes, "Learning rate")
    axes.set_xlabel("step")
    if not np.isfinite(values).any():
        _empty(axes)
        return
    axes.fill_between(steps, values, color=FAINT, alpha=0.18, linewidth=0)
    axes.plot(steps, values, color=FAINT, linewidth=1.4)
    axes.set_ylim(0, np.nanmax(values) * 1.2 or 1)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.yaxis.get_offset_text().set_color(FAINT)


def _draw_metric(axes: "Axes", name: str, steps: np.ndarray, values: np.ndarray) -> None:
    lower = name in LOWER_IS_BETTER
    color = ORANGE if lower else GREEN
    _prepare(axes, NAMES.get(name, name), "lower is better" if lower else "higher is better")
    axes.set_xlabel("step")
    if not np.isfinite(values).any():
        _empty(axes)
        return
    axes.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=3.2 if len(steps) < 40 else 0)
    best = int(np.nanargmin(values) if lower else np.nanargmax(values))
    top = float(np.nanmax(values))
    axes.set_ylim(0, top * 1.25 if top > 0 else 1)
    axes.plot(steps[best], values[best], "o", color="white", markeredgecolor=color, markeredgewidth=2, markersize=7)
    _mark(axes, steps[best], values[best], f"{values[best]:.3g}", color, above=not lower or values[best] < top / 2)
    if len(steps) == 1:
        axes.set_xlim(0, steps[0] * 2 or 1)


def _prepare(axes: "Axes", title: str, note: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    if note:
        axes.set_title(note, loc="right", fontsize=8, color=FAINT, pad=8)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    axes.margins(x=0.07 if note else 0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.xaxis.set_major_locator(_whole_steps(5 if note else 9))


def _whole_steps(most: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, integer=True, min_n_ticks=1)


def _mark(axes: "Axes", x: float, y: float, text: str, color: str, *, above: bool = True) -> None:
    """A value beside its point."""
    axes.annotate(
        text, (x, y), xytext=(0, 8 if above else -14), textcoords="offset points", ha="center", color=color,
        fontweight="bold", annotation_clip=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip


def _empty(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, color=FAINT, ha="center", va="center")
    axes.set_yticks([])
    axes.set_xticks([])


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` finite values at each step, so that the end is not drawn before it is there."""
    good = np.isfinite(values)
    sums = np.cumsum(np.where(good, values, 0.0))
    counts = np.cumsum(good)
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
