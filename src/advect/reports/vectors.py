"""Vectors in many dimensions: where they lie, and each feature by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from advect.reports.canvas import DATA, OTHERS, SAMPLES, TEXT, new_figure, style, to_image
from advect.reports.scatter import SIZE, draw_scatter, reference_rows, rows, scatter_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEATURES, LEVELS = 200, 99


def vector_plot(
    x: Tensor,
    reference: Tensor | None = None,
    *,
    names: Sequence[str] = (),
    features: Sequence[int] | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Image.Image:
    """Draw x (N, D) over ``reference`` (M, D): principal components, and beside them quantiles of each feature.

    Of the second part each line is a feature: its percentiles in x against those in the reference, both less the
    reference's mean and over its deviation, so that the diagonal is a perfect match. At most 200 features, evenly
    chosen, are drawn, and the three farthest from the diagonal are named. NaN, a missing value, is left out. Without
    a reference there is the first part alone.

    Args:
        x, reference: at most 2,000 rows of each are drawn.
        names: of the features (D); by default x1 to xD.
        features: those of which quantiles are drawn, such as numbers but not codes; by default all.
        embed: what the components are of, (n, D) -> (n, K); by default the values themselves.

    Raises:
        UserError: another shape.
    """
    behind = reference_rows(x, reference)
    places = embed or (lambda rows: rows)
    chosen = list(range(x.shape[1])) if features is None else list(features)
    if reference is None:
        return scatter_plot(places(x))
    if not chosen:
        return scatter_plot(places(x), places(reference))
    figure = new_figure(2 * SIZE, SIZE)
    left, right = figure.subplots(1, 2)
    draw_scatter(left, rows(places(x), "x"), rows(places(reference), "reference"))
    titles = [names[i] if names else f"x{i + 1}" for i in chosen]
    draw_quantiles(right, rows(x, "x")[:, chosen], behind[:, chosen], titles)
    return to_image(figure)


def draw_quantiles(axes: Axes, points: np.ndarray, behind: np.ndarray, names: list[str]) -> None:
    """The quantile plot of :func:`vector_plot` in a pair of axes."""
    style(axes)
    chosen = np.unique(np.linspace(0, points.shape[1] - 1, min(FEATURES, points.shape[1])).round().astype(int))
    lines = {i: line for i in chosen if (line := _quantiles(points[:, i], behind[:, i])) is not None}
    worst = sorted(lines, key=lambda i: -np.abs(lines[i][1] - lines[i][0]).mean())[:3]
    for i, (real, own) in lines.items():
        if i not in worst:
            axes.plot(real, own, color=SAMPLES, linewidth=0.7, alpha=max(0.15, 0.7 * len(lines) ** -0.3))
    for i, colour, dash in zip(worst, OTHERS, ("-", "--", "-."), strict=False):
        axes.plot(*lines[i], color=colour, linewidth=1.3, linestyle=dash, label=_short(names[i]))
    reach = max([3.0, *(float(np.abs(real).max()) for real, _ in lines.values())])
    reach = min(reach, 6.0)
    axes.plot([-reach, reach], [-reach, reach], color=DATA, linewidth=1, zorder=0)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set_xlabel("quantiles of the data, in deviations from its mean", fontsize=6.5, color=TEXT)
    axes.set_ylabel("quantiles of the samples", fontsize=6.5, color=TEXT)
    count = f"{len(lines)} of {points.shape[1]:,} features" if len(lines) < points.shape[1] else "each feature"
    if worst:
        title = f"{count}; farthest off:" if len(lines) > 3 else "features"
        axes.legend(fontsize=6, frameon=False, loc="upper left", title=title, title_fontsize=6, alignment="left")


def _quantiles(own: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Percentiles of the data and of the samples (99,), in deviations of the data; None where it does not vary."""
    own, real = own[np.isfinite(own)], real[np.isfinite(real)]
    if not len(own) or not len(real) or real.std() == 0:
        return None
    levels = np.linspace(0, 1, LEVELS + 2)[1:-1]
    found = (np.quantile(values, levels) for values in (real, own))
    real_line, own_line = ((line - real.mean()) / real.std() for line in found)
    return real_line, own_line


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
