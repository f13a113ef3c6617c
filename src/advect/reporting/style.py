"""Charts as SVG in the page's colours and font, and number formats."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def number(value: float) -> str:
    """Three significant digits: 0.0123, 4.56, 12,345, 6.79 M; of what nears 1, two of its distance: 0.9995."""
    if value != value or abs(value) == float("inf"):
        return str(value)
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M" if abs(value) < 1e9 else f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{round(value):,}"
    digits = min(max(3, math.ceil(1 - math.log10(1 - value))), 6) if 0 < value < 1 else 3
    text = f"{value:.{digits}g}"
    return text if "e" not in text or abs(value) < 1e-4 else f"{float(text):g}"


def percent(share: float) -> str:
    """Share in [0, 1] as percent with one decimal."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def plural(count: int, noun: str) -> str:
    """Count with its noun: 1 epoch, 2 epochs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# Matplotlib knows fixed colours only. These stand for the page's, and are replaced in the finished SVG.
INK, MUTED, LINE = "#010101", "#010102", "#010103"
FIRST, SECOND, THIRD = "#010104", "#010105", "#010106"
_NAMES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "first", SECOND: "second", THIRD: "third"}

_PLACES, _DIGITS = re.compile(r'\b(?:d|x|y|width|height)="[^"]*"'), re.compile(r"(\.\d\d)\d+")
"""Coordinates, and digits below visibility."""


def new_chart(width: float, height: float, *, x: str, y: str) -> tuple[Figure, Axes]:
    """Figure (inches) with one pair of axes, labelled ``x`` and ``y``."""
    figure, grid = new_charts(width, height)
    axes = grid[0, 0]
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)
    return figure, axes


def new_charts(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Figure (inches) with (rows, columns) axes of common scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, color=LINE, labelcolor=MUTED, length=0, pad=5, which="both")
    return figure, grid


def add_legend(axes: Axes) -> None:
    """Plain legend in the page's colours."""
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="best")


def to_svg(figure: Figure, name: str) -> str:
    """Figure as reproducible inline SVG; ``name`` prefixes its ids."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    head = f'<svg class="chart" role="img" aria-label="{name}" {box.group() if box else ""}'
    body = _PLACES.sub(lambda found: _DIGITS.sub(r"\1", found.group()), body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in _NAMES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f"{head}>{body}"
