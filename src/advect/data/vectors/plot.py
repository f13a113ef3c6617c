"""Plots of vectors: projections and quantiles per feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError
from advect.data.captions import Colouring
from advect.data.figure import ALARM, DATA, OTHERS, SAMPLES, TEXT, caption, new_figure, plot_unit, style, to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SIZE, POINTS = 512, 2000


def scatter_plot(x: Tensor, reference: Tensor | None = None, colours: Colouring | None = None) -> Image.Image:
    """Plot x (N, D) over ``reference`` (M, D), at most 2,000 points each, in 512 x 512 pixels.

    D = 1 gives histograms; D > 2 the first two principal components of the reference, or of x without one. Axes span
    the reference and the middle 98% of x. Non-finite samples are omitted and counted in the title. ``colours`` are of
    the samples. Raises UserError for another shape.
    """
    figure = new_figure(SIZE, SIZE)
    draw_scatter(figure.subplots(), rows(x, "x"), reference_rows(x, reference), colours)
    return to_image(figure)


def draw_scatter(axes: Axes, points: np.ndarray, behind: np.ndarray, colours: Colouring | None = None) -> None:
    """Draw :func:`scatter_plot` of rows (N, D) and (M, D), M = 0 without data, on axes."""
    finite = np.asarray(np.isfinite(points).all(axis=1))
    shown = np.flatnonzero(finite)
    lost, points = int((~finite).sum()), points[finite]
    wide, unit = points.shape[1] > 2, plot_unit(points, behind)
    points, behind = points / unit, behind / unit
    points, behind = _flat(points, behind[np.isfinite(behind).all(axis=1)])
    style(axes)
    if points.shape[1] == 1:
        bins = np.histogram_bin_edges(np.concatenate([points, behind])[:, 0], 60).tolist()
        if len(behind):
            axes.hist(behind[:, 0], bins=bins, density=True, color=DATA, label="data")
        groups = colours.groups(shown) if colours is not None and colours.names else []
        if len(points) and groups:
            share = 1 / (len(points) * np.diff(bins).mean())
            for (name, places), colour in zip(groups, _palette(groups), strict=True):
                own = points[places, 0]
                weights = np.full(len(own), share)
                axes.hist(own, bins=bins, weights=weights, histtype="step", color=colour, label=caption(name))
        elif len(points):
            axes.hist(points[:, 0], bins=bins, density=True, histtype="step", color=SAMPLES, label="samples")
    else:
        axes.scatter(*behind.T, s=4, c=DATA, linewidths=0, label="data")
        _draw_points(axes, points, colours, shown)
        _limit(axes, points, behind)
    if wide:
        axes.set_xlabel("first principal component", fontsize=6.5, color=TEXT)
        axes.set_ylabel("second principal component", fontsize=6.5, color=TEXT)
    if unit != 1:
        axes.set_xlabel(f"{axes.get_xlabel()} in units of {unit:.3g}".strip(), fontsize=6.5, color=TEXT)
    if colours is not None and colours.names and len(points):
        axes.figure.legend(
            *axes.get_legend_handles_labels(), title=caption(colours.title, 80), title_fontsize=6.5, fontsize=6,
            frameon=False, loc="outside lower left", ncols=6, markerscale=2, alignment="left", labelcolor=TEXT,
        )  # fmt: skip
    elif len(behind):
        axes.legend(fontsize=6, frameon=False, loc="upper right", markerscale=1.5)
    if lost:
        axes.set_title(f"{lost} of {len(finite)} samples are not finite", fontsize=7, color=ALARM)


def _draw_points(axes: Axes, points: np.ndarray, colours: Colouring | None, shown: np.ndarray) -> None:
    """Samples (N, 2), the ``shown`` ones, in one colour or those of a condition."""
    look: dict[str, Any] = {"s": 5, "linewidths": 0, "alpha": 0.8}
    if colours is None or not len(points):
        axes.scatter(*points.T, c=SAMPLES, label="samples", **look)
    elif colours.names:
        groups = colours.groups(shown)
        for (name, places), colour in zip(groups, _palette(groups), strict=True):
            axes.scatter(*points[places].T, color=colour, label=caption(name), **look)
    else:
        drawn = axes.scatter(*points.T, c=colours.values[shown], cmap="viridis", label="samples", **look)
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.01)
        bar.set_label(caption(colours.title, 80), fontsize=6.5, color=TEXT)
        bar.ax.tick_params(labelsize=6, labelcolor=TEXT, length=2)
        if colours.unit:
            from matplotlib.ticker import FuncFormatter

            date = lambda value, _: str(np.array(int(value), f"M8[{colours.unit}]")).replace("T00:00:00", "")
            bar.ax.yaxis.set_major_formatter(FuncFormatter(date))


def _palette(groups: Sequence[tuple[str, np.ndarray]]) -> list[Any]:
    """A colour for each group; others and none are grey."""
    from matplotlib import colormaps

    own = [colour for i, colour in enumerate(colormaps["tab10"].colors) if i != 7]  # type: ignore[attr-defined] - grey
    return [TEXT if name in ("others", "none") else own[i % len(own)] for i, (name, _) in enumerate(groups)]


def rows(x: Tensor, argument: str) -> np.ndarray:
    """First 2,000 rows of x (N, D), float64; UserError for another shape."""
    if x.ndim != 2 or not x.numel():
        raise UserError(f"{argument} must be vectors (N, D) with N and D >= 1, got shape {tuple(x.shape)}")
    return x[:POINTS].detach().cpu().double().numpy()


def reference_rows(x: Tensor, reference: Tensor | None) -> np.ndarray:
    """Same for the reference (M, D), empty if None; UserError unless D matches x."""
    behind = rows(x, "x")[:0] if reference is None else rows(reference, "reference")
    if behind.shape[1] != x.shape[1]:
        raise UserError(f"reference must have the dimension of x, got {behind.shape[1]} and {x.shape[1]}")
    return behind


def _flat(points: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets projected to at most two dimensions."""
    basis = behind if len(behind) > 1 else points
    if points.shape[1] <= 2 or len(basis) < 2:
        return points[:, :2], behind[:, :2]
    from sklearn.decomposition import PCA

    with np.errstate(invalid="ignore", divide="ignore"):  # constant data have no variance to share out
        pca = PCA(2, random_state=0).fit(basis)
    return (pca.transform(points) if len(points) else points[:, :2]), (
        pca.transform(behind) if len(behind) else behind[:, :2]
    )


def _limit(axes: Axes, points: np.ndarray, behind: np.ndarray) -> None:
    """Equal units on both axes, ignoring far outliers of the samples."""
    ends = [z for z in (behind, np.quantile(points, (0.01, 0.99), axis=0) if len(points) else points) if len(z)]
    if not ends:
        return
    low, high = np.concatenate(ends).min(0), np.concatenate(ends).max(0)
    centre = (low + high) / 2
    least = 1e-6 if (low == high).all() else 4 * float(np.spacing(np.abs(centre).max()))
    half = 0.58 * max(float((high - low).max()), least)
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")


FEATURES, LEVELS = 200, 99


def vector_plot(
    x: Tensor,
    reference: Tensor | None = None,
    *,
    names: Sequence[str] = (),
    features: Sequence[int] | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
    colours: Colouring | None = None,
) -> Image.Image:
    """Draw x (N, D) over ``reference`` (M, D): principal components and quantiles of each feature.

    Each line of the second part is a feature: its percentiles in x against the reference, standardised by the
    reference, so that the diagonal is a perfect match. At most 200 evenly chosen features are drawn; the three
    farthest off are named. NaN (missing) is omitted. Without a reference only the first part is drawn.

    Args:
        x, reference: at most 2,000 rows of each are drawn.
        names: feature names (D); default x1 to xD.
        features: features with quantiles, such as numbers but not codes; default all.
        embed: maps (n, D) -> (n, K) before the components; default the identity.
        colours: of the samples in the first part.

    Raises:
        UserError: another shape.
    """
    behind = reference_rows(x, reference)
    places = embed or (lambda rows: rows)
    chosen = list(range(x.shape[1])) if features is None else list(features)
    if reference is None:
        return scatter_plot(places(x), colours=colours)
    if not chosen:
        return scatter_plot(places(x), places(reference), colours)
    figure = new_figure(2 * SIZE, SIZE)
    left, right = figure.subplots(1, 2)
    draw_scatter(left, rows(places(x), "x"), rows(places(reference), "reference"), colours)
    titles = [names[i] if names else f"x{i + 1}" for i in chosen]
    draw_quantiles(right, rows(x, "x")[:, chosen], behind[:, chosen], titles)
    return to_image(figure)


def draw_quantiles(axes: Axes, points: np.ndarray, behind: np.ndarray, names: list[str]) -> None:
    """Draw the quantile plot of :func:`vector_plot` on axes."""
    style(axes)
    chosen = np.unique(np.linspace(0, points.shape[1] - 1, min(FEATURES, points.shape[1])).round().astype(int))
    lines = {i: line for i in chosen if (line := _quantiles(points[:, i], behind[:, i])) is not None}
    worst = sorted(lines, key=lambda i: -np.abs(lines[i][1] - lines[i][0]).mean())[:3]
    for i, (real, own) in lines.items():
        if i not in worst:
            axes.plot(real, own, color=SAMPLES, linewidth=0.7, alpha=max(0.15, 0.7 * len(lines) ** -0.3))
    for i, colour, dash in zip(worst, OTHERS, ("-", "--", "-."), strict=False):
        axes.plot(*lines[i], color=colour, linewidth=1.3, linestyle=dash, label=caption(names[i]))
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
    """Standardised percentiles of data and samples (99,); None if the data is constant."""
    own, real = own[np.isfinite(own)], real[np.isfinite(real)]
    unit = plot_unit(real)
    own, real = own / unit, real / unit
    if not len(own) or not len(real) or real.std() == 0:
        return None
    levels = np.linspace(0, 1, LEVELS + 2)[1:-1]
    found = (np.quantile(values, levels) for values in (real, own))
    real_line, own_line = ((line - real.mean()) / real.std() for line in found)
    return real_line, own_line
