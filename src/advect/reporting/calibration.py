"""Calibration in a report: verdict, figures by column, and charts with bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from advect.data.figure import caption
from advect.reporting.run_folder import RunFolder
from advect.reporting.style import FIRST, INK, LINE, MUTED, SECOND, add_legend, new_charts, number, percent, to_svg

SHOWN = 6
"""Most columns that are lines of their own; of more, that of the verdict is told from the others."""


def calibrated(run: RunFolder) -> dict[str, Any] | None:
    """The run's calibration; None where it has not been measured."""
    found = run.calibration
    if not found:
        return None
    rows = f"{found['rows']:,} held-out rows, {found['draws']} draws given the condition of each"
    return {
        "sentence": found["sentence"],
        "advice": found["advice"],
        "said": f"{rows}; measured by {found['by']}.",
        "lost": ", ".join(found["left_out"]),
        "head": ["column", f"in {found['level']:.0%} intervals", "mean width", "CRPS"],
        "rows": [_row(found, i, name) for i, name in enumerate(found["columns"])],
        "svg": Markup(chart(found)) if found.get("curves") and found["columns"] else None,
    }


def _row(found: Mapping[str, Any], i: int, name: str) -> list[str]:
    covered = f"{percent(found['coverage'][i])} ± {percent(found['coverage_error'])}"
    return [
        name,
        covered,
        number(found["sharpness"][i]),
        f"{number(found['crps'][i])} ± {number(found['crps_error'][i])}",
    ]


def chart(found: Mapping[str, Any]) -> str:
    """Ranks and central intervals, each as what is found less what is expected, in the band of exact draws (95%).

    Left: the distribution function of the ranks, above the band at the left and below it at the right if draws are too
    narrow. Right: the coverage of central intervals, below the band if they are.
    """
    curves = found["curves"]
    at, low, high = (np.array([0.0, *curves[name], 1.0]) for name in ("at", "low", "high"))
    figure, grid = new_charts(9, 3.2, columns=2)
    titles = ("rank among the draws", "level of central intervals")
    for axes, name, title in zip(grid[0], ("ranks", "central"), titles, strict=True):
        axes.fill_between(at, low - at, high - at, color=LINE, linewidth=0, label="exact draws, 95% band")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        _lines(axes, at, [np.array([0.0, *line, 1.0]) - at for line in curves[name]], found)
        axes.set_xlabel(title, fontsize=8.5, color=MUTED)
        axes.margins(x=0.01)
    grid[0, 0].set_ylabel("share below, less expected", fontsize=8.5, color=MUTED)
    grid[0, 1].set_ylabel("coverage less level", fontsize=8.5, color=MUTED)
    add_legend(grid[0, 1])
    return to_svg(figure, "calibration")


def _lines(axes: Any, at: np.ndarray, lines: list[np.ndarray], found: Mapping[str, Any]) -> None:
    """A line a column; of many, that of the verdict in colour and the others thin."""
    names = found["columns"]
    told = found.get("column", 0)
    styles = ("-", (0, (5, 2)), (0, (1, 1.5)))
    for i, (name, line) in enumerate(zip(names, lines, strict=True)):
        if len(lines) <= SHOWN:
            colour, style = (FIRST, SECOND)[i % 2], styles[i // 2]
            axes.plot(at, line, color=colour, linestyle=style, linewidth=1.6, label=_label(name))
        elif i != told:
            label = "other columns" if i == (told == 0) else None
            axes.plot(at, line, color=INK, linewidth=0.7, alpha=0.3, label=label)
    if len(lines) > SHOWN:
        axes.plot(at, lines[told], color=FIRST, linewidth=1.8, label=_label(names[told]))


def _label(name: str) -> str:
    """A column in a legend, which leaves out labels that begin with "_"."""
    return f" {caption(name)}" if name.startswith("_") else caption(name)
