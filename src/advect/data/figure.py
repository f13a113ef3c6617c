"""Figures of samples beside data: their colours, axes, and the picture that they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from advect.core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, SAMPLES, TEXT, ALARM = "#b4bac4", "#2f6fdf", "#5b6472", "#c0392b"
OTHERS = ("#dd7a35", "#1b9e77", "#7b3294")
"""Beside that of samples: orange, green and purple differ in lightness too."""


def new_figure(width: int, height: int) -> Figure:
    """A figure of so many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 128, height / 128), dpi=128, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes) -> None:
    """Thin grey axes with small figures."""
    axes.tick_params(labelsize=6, color=DATA, labelcolor=TEXT, length=2)
    axes.spines[:].set_color(DATA)


def to_image(figure: Figure) -> Image.Image:
    """The figure as an RGB picture."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def save_png(image: Image.Image, path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, whole or not at all."""
    atomic_write(path, lambda partial: image.save(partial, format="PNG", optimize=True))
