"""Figures of samples and data: colours, axes, conversion to images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from advect.core.errors import printable
from advect.core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, SAMPLES, TEXT, ALARM = "#b4bac4", "#2f6fdf", "#5b6472", "#c0392b"
OTHERS = ("#dd7a35", "#1b9e77", "#7b3294")
"""Orange, green and purple; they differ from ``SAMPLES`` in lightness too."""


def new_figure(width: int, height: int) -> Figure:
    """Figure of ``width`` x ``height`` pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 128, height / 128), dpi=128, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def caption(name: str, longest: int = 24) -> str:
    """Name of the data as Matplotlib shows it: short, without control characters, "$" a letter as any other."""
    text = printable(name)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def plot_unit(*arrays: np.ndarray) -> float:
    """Power of two by which values are divided so that their squares are finite and not 0; 1 where they are so."""
    size = max((float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in arrays), default=0.0)
    return 1.0 if size == 0 or 1e-100 < size < 1e100 else 2.0 ** np.floor(np.log2(size))


def style(axes: Axes) -> None:
    """Apply thin grey axes with small tick labels."""
    axes.tick_params(labelsize=6, color=DATA, labelcolor=TEXT, length=2)
    axes.spines[:].set_color(DATA)


def to_image(figure: Figure) -> Image.Image:
    """Figure as an RGB image."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def save_png(image: Image.Image, path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, atomically."""
    atomic_write(path, lambda partial: image.save(partial, format="PNG", optimize=True))
