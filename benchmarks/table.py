"""Figures as lines to read, as a Markdown table, and as a picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.bench import TITLES

COLUMNS = ("", "ved_flax", "ved_torch", "best other", "floor")
NOTES = {"ratio": "of the best other", "over": "times", "share": "of the matrix rate"}


def amount(value: float | str, unit: str) -> str:
    """A figure with its unit, or the words in its place."""
    if isinstance(value, str):
        return value
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.{0 if value >= 0.1 else 1 if value >= 1e-3 else 2}f} ms"


def figures(one: Mapping[str, Any], unit: str) -> str:
    """Of one of our sides: its value; the ratio to the best other with the spread of the pairs, or what else there is;
    the limit that was set."""
    words = [amount(one["value"], unit)]
    if "median" in one:
        words.append(f"{one['median']:.2f} ({one['least']:.2f} to {one['most']:.2f})")
    if "share" in one:
        words.append(f"{one['share']:.0%} of the rate")
    if "over" in one:
        words.append(f"× {one['over']:.2f}")
    if "extra" in one:
        words.append(f"{one['extra']:+.2f} s")
    if "peak" in one:
        words.append(f"peak × {one['peak']:.2f}")
    if "wanted" in one:
        relative = one.keys() & {"median", "share", "over", "extra"}
        wanted = f"{one['wanted']:g}" if relative else amount(one["wanted"], unit)
        words.append(f"{'✓' if one['met'] else '✗'} {wanted}")
    return ", ".join(words)


def best(result: Mapping[str, Any]) -> str:
    """The fastest of the others."""
    measured = {name: value for name, value in result["peers"].items() if not isinstance(value, str)}
    if not measured:
        return ""
    name = result.get("best") or min(measured, key=measured.__getitem__)
    return f"{amount(measured[name], result['unit'])} {TITLES.get(name, name)}"


def described(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """One row in full."""
    yield name
    if "error" in result:
        yield f"  not measured: {result['error']}"
        return
    unit = result["unit"]
    for side, one in result["ours"].items():
        yield f"  {side:<44} {figures(one, unit)}"
        if "each" in one:
            yield f"  {'':<44} {', '.join(f'{at}: {amount(value, unit)}' for at, value in one['each'].items())}"
    for side, value in result["peers"].items():
        yield f"  {TITLES.get(side, side):<44} {amount(value, unit)}"
    if "floor" in result:
        yield f"  {'floor':<44} {amount(result['floor'], unit)}"


def cells(name: str, result: Mapping[str, Any]) -> list[str]:
    """One row in short, of COLUMNS."""
    if "error" in result:
        return [name, f"not measured: {result['error']}", "", "", ""]
    unit, ours = result["unit"], result["ours"]
    sides = [figures(ours[side], unit) if side in ours else "" for side in COLUMNS[1:3]]
    floor = amount(result["floor"], unit) if "floor" in result else ""
    return [name, *sides, best(result), floor]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|--:|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(name, result))} |" for name, result in results.items())])


def picture(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The table as a PNG: green where a limit was kept, red where it was not."""
    from matplotlib.figure import Figure

    rows = [cells(name, result) for name, result in results.items()]
    sheet = Figure(figsize=(15, 0.24 * (1 + len(rows))))
    axes = sheet.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.axis("off")
    drawn = axes.table(
        rows, colLabels=COLUMNS, colWidths=(0.19, 0.25, 0.25, 0.22, 0.07), cellLoc="left", bbox=(0, 0, 1, 1)
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0.3)
        if row == 0:
            cell.set_text_props(weight="bold")
        elif column in (1, 2):
            text = cell.get_text().get_text()
            cell.set_facecolor("#e3f4e3" if "✓" in text else "#f8e0e0" if "✗" in text else "white")
    sheet.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.1)
