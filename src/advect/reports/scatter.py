"""A scatter plot of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError
from advect.reports.canvas import ALARM, DATA, SAMPLES, TEXT, new_figure, style, to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, POINTS = 512, 2000


def scatter_plot(x: Tensor, reference: Tensor | None = None) -> Image.Image:
    """Plot x (N, D) over ``reference`` (M, D), at most 2,000 points of each, as a picture of 512 x 512 pixels.

    With D = 1 both are histograms; with D > 2 the axes are the first two principal components of the
    reference, or of x without one. The axes span the reference and the middle 98% of x. Samples that are not
    finite are left out and counted in the picture. Raises UserError for another shape.
    """
    figure = new_figure(SIZE, SIZE)
    draw_scatter(figure.subplots(), rows(x, "x"), reference_rows(x, reference))
    return to_image(figure)


def draw_scatter(axes: Axes, points: np.ndarray, behind: np.ndarray) -> None:
    """What :func:`scatter_plot` shows of rows (N, D) and (M, D), M = 0 without data, in a pair of axes."""
    finite = np.asarray(np.isfinite(points).all(axis=1))
    lost, points = int((~finite).sum()), points[finite]
    wide = points.shape[1] > 2
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
    if len(behind):
        axes.legend(fontsize=6, frameon=False, loc="upper right", markerscale=1.5)
    if lost:
        axes.set_title(f"{lost} of {len(finite)} samples are not finite", fontsize=7, color=ALARM)


def rows(x: Tensor, argument: str) -> np.ndarray:
    """The first 2,000 of x (N, D), float64; UserError for another shape."""
    if x.ndim != 2 or not x.numel():
        raise UserError(f"{argument} must be vectors (N, D) with N and D >= 1, got shape {tuple(x.shape)}")
    return x[:POINTS].detach().cpu().double().numpy()


def reference_rows(x: Tensor, reference: Tensor | None) -> np.ndarray:
    """The same of the reference (M, D), none without one; UserError for another D than that of x."""
    behind = rows(x, "x")[:0] if reference is None else rows(reference, "reference")
    if behind.shape[1] != x.shape[1]:
        raise UserError(f"reference must have the dimension of x, got {behind.shape[1]} and {x.shape[1]}")
    return behind


def _flat(points: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in at most two dimensions."""
    basis = behind if len(behind) > 1 else points
    if points.shape[1] <= 2 or len(basis) < 2:
        return points[:, :2], behind[:, :2]
    from sklearn.decomposition import PCA

    pca = PCA(2, random_state=0).fit(basis)
    return (pca.transform(points) if len(points) else points[:, :2]), (
        pca.transform(behind) if len(behind) else behind[:, :2]
    )


def _limit(axes: Axes, points: np.ndarray, behind: np.ndarray) -> None:
    """Equal units on both axes, and no room for far outliers of the samples."""
    ends = [z for z in (behind, np.quantile(points, (0.01, 0.99), axis=0) if len(points) else points) if len(z)]
    if not ends:
        return
    low, high = np.concatenate(ends).min(0), np.concatenate(ends).max(0)
    half = 0.58 * max(float((high - low).max()), 1e-6)
    centre = (low + high) / 2
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")
