"""Plots of vectors: projections and quantiles per feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError
from advect.data.figure import ALARM, DATA, OTHERS, SAMPLES, TEXT, caption, new_figure, plot_unit, style, to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SIZE, POINTS = 512, 2000


def scatter_plot(x: Tensor, reference: Tensor | None = None) -> Image.Image:
    """Plot x (N, D) over ``reference`` (M, D), at most 2,000 points each, in 512 x 512 pixels.

    D = 1 gives histograms; D > 2 the first two principal components of the reference, or of x without one. Axes span
    the reference and the middle 98% of x. Non-finite samples are omitted and counted in the title. Raises UserError
    for another shape.
    """
    figure = new_figure(SIZE, SIZE)
    draw_scatter(figure.subplots(), rows(x, "x"), reference_rows(x, reference))
    return to_image(figure)


def draw_scatter(axes: Axes, points: np.ndarray, behind: np.ndarray) -> None:
    """Draw :func:`scatter_plot` of rows (N, D) and (M, D), M = 0 without data, on axes."""
    finite = np.asarray(np.isfinite(points).all(axis=1))
    lost, points = int((~finite).sum()), points[finite]
    wide, unit = points.shape[1] > 2, plot_unit(points, behind)
    points, behind = points / unit, behind / unit
    points, behind = _flat(points, behind[np.isfinite(behind).all(axis=1)])
    style(axes)
    if points.shape[1] == 1:
        bins = np.histogram_bin_edges(np.concatenate([points, behind])[:, 0], 60).tolist()
        if len(behind):
            axes.hist(behind[:, 0], bins=bins, density=True, color=DATA, label="data")
        if len(points):
            axes.hist(points[:, 0], bins=bins, density=True, histtype="step", color=SAMPLES, label="samples")
    else:
        axes.scatter(*behind.T, s=4, c=DATA, linewidths=0, label="data")
        axes.scatter(*points.T, s=5, c=SAMPLES, linewidths=0, alpha=0.8, label="samples")
        _limit(axes, points, behind)
    if wide:
        axes.set_xlabel("first principal component", fontsize=6.5, color=TEXT)
        axes.set_ylabel("second principal component", fontsize=6.5, color=TEXT)
    if unit != 1:
        axes.set_xlabel(f"{axes.get_xlabel()} in units of {unit:.3g}".strip(), fontsize=6.5, color=TEXT)
    if len(behind):
        axes.legend(fontsize=6, frameon=False, loc="upper right", markerscale=1.5)
    if lost:
        axes.set_title(f"{lost} of {len(finite)} samples are not finite", fontsize=7, color=ALARM)


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
