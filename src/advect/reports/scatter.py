"""A scatter plot of vectors."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError

SIZE, POINTS = 512, 2000
DATA, SAMPLES = "#b4bac4", "#2f6fdf"


def scatter_plot(x: Tensor, reference: Tensor | None = None) -> Image.Image:
    """Plot x (N, D) over ``reference`` (M, D), at most 2,000 points of each, as a picture of 512 x 512 pixels.

    With D = 1 both are histograms; with D > 2 the axes are the first two principal components of the
    reference, or of x without one. The axes span the reference and the middle 98% of x. Samples that are not
    finite are left out and counted in the picture. Raises UserError for another shape.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = _rows(x, "x")
    behind = points[:0] if reference is None else _rows(reference, "reference")
    if behind.shape[1] != points.shape[1]:
        raise UserError(f"reference must have the dimension of x, got {behind.shape[1]} and {points.shape[1]}")
    finite = np.asarray(np.isfinite(points).all(axis=1))
    lost, points = int((~finite).sum()), points[finite]
    points, behind = _flat(points, behind)
    figure = Figure(figsize=(SIZE / 128, SIZE / 128), dpi=128, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(labelsize=6, color=DATA, labelcolor="#5b6472", length=2)
    axes.spines[:].set_color(DATA)
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
    if len(behind):
        axes.legend(fontsize=6, frameon=False, loc="upper right", markerscale=1.5)
    if lost:
        axes.set_title(f"{lost} of {len(finite)} samples are not finite", fontsize=7, color="#c0392b")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _rows(x: Tensor, argument: str) -> np.ndarray:
    if x.ndim != 2 or not x.numel():
        raise UserError(f"{argument} must be vectors (N, D) with N and D >= 1, got shape {tuple(x.shape)}")
    return x[:POINTS].detach().cpu().double().numpy()


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


def _limit(axes, points: np.ndarray, behind: np.ndarray) -> None:
    """Equal units on both axes, and no room for far outliers of the samples."""
    ends = [z for z in (behind, np.quantile(points, (0.01, 0.99), axis=0) if len(points) else points) if len(z)]
    if not ends:
        return
    low, high = np.concatenate(ends).min(0), np.concatenate(ends).max(0)
    half = 0.58 * max(float((high - low).max()), 1e-6)
    centre = (low + high) / 2
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")
