"""The charts of a report, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from advect.core.files import open_regular, read_file
from advect.data.images.modality import image_grid, to_bytes
from advect.reporting.style import (
    FIRST,
    INK,
    LINE,
    MUTED,
    SECOND,
    THIRD,
    add_legend,
    new_chart,
    new_charts,
    number,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 800
Series = tuple[Sequence[float], Sequence[float]]
"""Steps and values, of one length."""


def smooth(values: Sequence[float]) -> np.ndarray:
    """Moving average over a fortieth of the values (n,), narrower at both ends."""
    y = np.asarray(values, dtype=float)
    reach = len(y) // 80
    total = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    half = np.minimum(reach, np.minimum(i, len(y) - 1 - i))
    return (total[i + half + 1] - total[i - half]) / (2 * half + 1)


def _thin(*columns: Any) -> list[np.ndarray]:
    """Evenly spaced common rows of the columns, at most 800."""
    places = np.unique(np.linspace(0, len(columns[0]) - 1, POINTS).round().astype(int))
    return [np.asarray(c, dtype=float)[places] for c in columns]


def _scale_y(axes: Axes, values: Sequence[float] | np.ndarray) -> None:
    """Logarithmic axis for positive values that span a factor of 4 or more."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = float(np.min(values)), float(np.max(values))
    if low <= 0 or high < 4 * low:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))


def _step_axis(axes: Axes, ticks: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{int(v):,}"))
    axes.margins(x=0.01)


def loss_chart(train: Series, held_out: Series) -> str:
    """Training loss, its moving average, and the held-out loss (may be empty)."""
    figure, axes = new_chart(9, 3.2, x="step", y="loss")
    steps, raw, mean = _thin(train[0], train[1], smooth(train[1]))
    axes.plot(steps, raw, color=FIRST, linewidth=0.8, alpha=0.28)
    axes.plot(steps, mean, color=FIRST, linewidth=1.8, label="training (moving mean)")
    if len(held_out[0]):
        h_steps, h = _thin(*held_out)
        marker = "o" if len(h) <= 60 else None
        axes.plot(h_steps, h, color=SECOND, linewidth=1.5, marker=marker, markersize=3.5, label="held-out")
    _scale_y(axes, np.concatenate([mean, held_out[1]]))
    _step_axis(axes, 6)
    add_legend(axes)
    return to_svg(figure, "loss")


def eval_chart(distances: Series, floor: float | None) -> str:
    """Distance of samples to held-out data by step, with the floor."""
    figure, axes = new_chart(9, 2.8, x="step", y="Frechet distance to held-out data")
    steps, values = _thin(*distances)
    marker = "o" if len(values) <= 60 else None
    axes.plot(steps, values, color=FIRST, linewidth=1.8, marker=marker, markersize=4, label="samples")
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="floor: real training data")
    _scale_y(axes, [*values, *([floor] if floor is not None else [])])
    _step_axis(axes, 6)
    add_legend(axes)
    return to_svg(figure, "evaluations")


def step_chart(series: Series, name: str, label: str, *, mean: bool = True) -> str:
    """Small chart of one quantity by step; ``name`` is the SVG's id."""
    figure, axes = new_chart(3.3, 2.1, x="step", y=label)
    steps, raw, smoothed = _thin(series[0], series[1], smooth(series[1]))
    axes.plot(steps, raw, color=FIRST, linewidth=0.8 if mean else 1.8, alpha=0.28 if mean else 1)
    if mean:
        axes.plot(steps, smoothed, color=FIRST, linewidth=1.6)
        _scale_y(axes, smoothed)
    else:
        axes.set_ylim(bottom=0)
    _step_axis(axes, 4)
    return to_svg(figure, name)


def quality_chart(
    curves: dict[str, dict[str, list]],
    floor: float,
    *,
    label: str = "Frechet distance to held-out data",
    name: str = "quality",
) -> str:
    """Distance to held-out data by network evaluations, a line a solver or flow; ``name`` is the SVG's id.

    A curve has "nfe", "distance" and, to draw them, the ends of an "interval" of each.
    """
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, axes = new_chart(9, 3.4, x="network evaluations a sample", y=label)
    styles = ((SECOND, "s"), (FIRST, "o"), (THIRD, "D"), (MUTED, "^"), (INK, "v"))
    ticks: set[float] = set()
    for i, (line, curve) in enumerate(curves.items()):
        colour, marker = styles[i % len(styles)]
        axes.plot(
            curve["nfe"], curve["distance"], color=colour, linewidth=1.8, marker=marker, markersize=4.5, label=line
        )
        ends = np.reshape(curve.get("interval", []), (-1, 2))
        if (ends[:, 0] < ends[:, 1]).any():
            axes.vlines(curve["nfe"], ends[:, 0], ends[:, 1], color=colour, linewidth=1.2)
        ticks |= set(curve["nfe"])
    values = [d for c in curves.values() for d in c["distance"]]
    if floor > 0 or min(values) <= 0:
        axes.axhline(floor, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="floor: real training data")
        values.append(floor)
    else:  # an unbiased distance of real data may be negative, and would take the logarithm from all others
        axes.plot([], [], color="none", label="floor of real training data: below 0")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    _scale_y(axes, values)
    add_legend(axes)
    return to_svg(figure, name)


def neighbour_chart(samples: np.ndarray, held_out: np.ndarray, threshold: float) -> str:
    """Histograms of distances of samples (n,) and held-out rows (m,) to the nearest training row."""
    figure, axes = new_chart(9, 2.8, x="distance to the nearest training row", y="share a bin, %")
    bins = np.histogram_bin_edges(np.concatenate([samples, held_out]), 50).tolist()
    for values, colour, label in ((held_out, SECOND, "held-out data"), (samples, FIRST, "samples")):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, weights=weights, color=colour, bins=bins, histtype="stepfilled", alpha=0.3)
        axes.hist(values, weights=weights, color=colour, bins=bins, histtype="step", linewidth=1.5, label=label)
    axes.axvline(threshold, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="1st percentile of held-out")
    add_legend(axes)
    return to_svg(figure, "neighbours")


def trajectory_chart(x: np.ndarray, *, components: bool = False) -> str:
    """Trajectories (T, N, D) of vectors in the first two dimensions, or principal ``components`` (D = 1: value by
    time).
    """
    flat = x.shape[2] == 1
    what = "principal component" if components else "dimension"
    labels = ("time", "value") if flat else (f"first {what}", f"second {what}")
    figure, axes = new_chart(6.2, 4.6, x=labels[0], y=labels[1])
    ways = (
        np.stack([np.broadcast_to(np.linspace(0, 1, len(x))[:, None], x.shape[:2]), x[..., 0]], -1)
        if flat
        else x[..., :2]
    )
    axes.plot(ways[..., 0], ways[..., 1], color=FIRST, linewidth=0.5, alpha=0.3)
    axes.scatter(*ways[0].T, s=5, color=SECOND, linewidths=0, label="noise, t = 0", zorder=2)
    axes.scatter(*ways[-1].T, s=9, color=FIRST, linewidths=0, label="sample, t = 1", zorder=3)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    if not flat:
        axes.set_aspect("equal", adjustable="datalim")
    add_legend(axes)
    return to_svg(figure, "trajectories")


def series_chart(t: np.ndarray, x: np.ndarray, words: Sequence[str] = ()) -> str:
    """Trajectories (T, N, L, C) of sequences: at most three samples (rows), five times (columns), four channels.

    Steps that are zero to the end of the last state are padding; ``words`` (N,) stand beside the samples.
    """
    places = np.unique(np.linspace(0, len(t) - 1, min(5, len(t))).round().astype(int))
    count = min(3, x.shape[1])
    figure, grid = new_charts(9, 1.3 * count + 0.5, rows=count, columns=len(places))
    figure.supxlabel("step", fontsize=8.5, color=MUTED)
    for i in range(count):
        real = np.flatnonzero((x[-1, i] != 0).any(1))
        end = int(real[-1]) + 1 if len(real) else 1
        if i < len(words):
            grid[i, 0].set_ylabel(words[i], fontsize=7.5, color=MUTED)
        for j, place in enumerate(places):
            for channel, colour in zip(x[place, i, :end].T, (FIRST, SECOND, THIRD, INK), strict=False):
                grid[i, j].plot(channel, color=colour, linewidth=1.2, marker="." if end == 1 else None)
            if i == 0:
                grid[i, j].set_title(f"t = {t[place]:.2f}", fontsize=8.5, color=MUTED)
    return to_svg(figure, "trajectories")


_SMALLER = ((1, 80), (1, 55), (0.7, 50), (0.5, 45), (0.35, 35), (0.2, 20))
"""Scales and WebP qualities to try."""


def data_uri(image: Image.Image, limit: int) -> str:
    """Image as PNG if at most ``limit`` bytes, else as the best WebP that fits."""
    data = _encode(image, "PNG")
    if len(data) <= limit:
        return _uri(data, "png")
    for share, quality in _SMALLER:
        smaller = image.convert("RGB")
        if share < 1:
            smaller = smaller.resize((max(1, round(share * image.width)), max(1, round(share * image.height))))
        data = _encode(smaller, "WEBP", quality=quality, method=2)
        if len(data) <= limit:
            break
    return _uri(data, "webp")


def file_uri(file: Path, limit: int) -> str | None:
    """Picture of a file, or None if damaged."""
    try:
        with open_regular(file) as content, Image.open(content) as image:
            image.load()
            if image.format == "PNG" and file.stat().st_size <= limit:
                return _uri(read_file(file), "png")
            return data_uri(image if image.mode in ("L", "RGB") else image.convert("RGB"), limit)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def tile_uri(x: np.ndarray, low: float, high: float) -> str:
    """One image (C, H, W) in data units, at most 6 KB."""
    y = to_bytes(torch.from_numpy(x), low, high).numpy()
    plain = y[0] if len(y) == 1 else y.transpose(1, 2, 0) if len(y) == 3 else np.concatenate(list(y), axis=1)
    return data_uri(Image.fromarray(np.ascontiguousarray(plain)), 6_000)


def strip_uri(x: np.ndarray, low: float, high: float, words: Sequence[str] = ()) -> str:
    """States (T, N, C, H, W) as a grid of samples by times, with a caption (N,) each, at most 250 KB."""
    t, n = x.shape[:2]
    rows = torch.from_numpy(x).transpose(0, 1).reshape(t * n, *x.shape[2:])
    captions = [own for caption in words for own in (caption, *[""] * (t - 1))]
    return data_uri(image_grid(rows, low, high, columns=t, min_pixels=72, captions=captions), 250_000)


def evenly(items: Sequence, count: int) -> list:
    """At most ``count`` evenly spaced items, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
