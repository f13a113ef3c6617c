"""Images: files, grids, pixel values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import Batch, Category, Conditions
from advect.data.arrays import ArrayType, in_type
from advect.data.base import Split
from advect.data.captions import condition_words, fit, font
from advect.data.figure import TEXT, save_png
from advect.data.given import GivenRows
from advect.data.images.given import read_images
from advect.data.modality import FINE, EstimatorDefaults, Modality, Recipe, Verdict, condition_columns, write_npz

GAP, BACKGROUND = 2, 255
"""Grid: pixels between images and their grey level."""

COLUMNS, MOST = 9, 100
"""Images in a row of a grid of answers, the question first, and in all."""

LETTER, LINE = 10, 13
"""Pixels of letters and lines of captions."""


class NoMetadata(TypedDict):
    """Images have none: spec and transform tell all."""


@register("image")
class Images(Modality):
    """Images (C, H, W): samples.npz with ``x``, whole-numbered pixels in their type, and a grid."""

    record = NoMetadata
    layout = "image"
    example_shape = (3, 64, 64)
    usual_preset = "images"
    metrics = ("frechet", "kernel", "manifolds", "class_shares", "class_accuracy", "straightness")
    online_metrics = ("frechet", "kernel")
    reflow_metrics = ("frechet", "kernel")
    pair_stores = ("bf16", "float32", "uint8")
    estimator = EstimatorDefaults("unet", 2000, 1e-3)
    recipe = Recipe(batch_size=64, epochs=200, cpu_steps=10_000, gpu_steps=200_000)
    shown = 16
    most_plotted = 100
    space = "pixel space"
    value_name = "pixels"
    feature_networks = True
    marginals = False

    @classmethod
    def check_range(cls, *, mean: float, std: float, extreme: float) -> Verdict:
        if std < 0.1:
            title = "The images use a small part of the range of pixels: they are nearly uniform"
            fix = "pixels from 0 to 255, or from 0 to 1 as real numbers; or the right --value-range"
            return Verdict("problem", title, fix)
        if not -1.01 <= mean <= 1.01:
            return Verdict("problem", "The pixels lie outside their range", "the right --value-range")
        return FINE

    @classmethod
    def check_constant(cls, share: float) -> Verdict:
        title = "Some features never change"
        if share <= 0.5:
            return Verdict("ok", title)
        return Verdict("note", title, "crop the images, where it is an empty border")

    def check_output(self, *, individual: bool = False) -> None:
        pass

    def describe(self, shape: Sequence[int]) -> str:
        return f"{' x '.join(map(str, shape))} images"

    def reference(self, held_out: Split) -> Batch | None:
        """None: a grid shows samples alone."""
        return None

    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Grid with a column per value of the first category if it has 2 to 16, else 8 columns, and captions.

        Black and white are the transform's ``low`` and ``high``, else the range of x.
        """
        values = next((len(c.names) for c in self.spec.conditions.values() if isinstance(c, Category)), 0)
        low, high = self.pixel_range or _range(x)
        title, words = condition_words(condition_columns(conditions, self.spec))
        columns = values if 2 <= values <= 16 else 8
        return image_grid(x, low, high, columns=columns, captions=words, title=title)

    def picture(self, x: Tensor) -> Image.Image:
        low, high = self.pixel_range or _range(x)
        pixels = to_bytes(x, low, high)
        if len(pixels) not in (1, 3, 4):  # channels side by side
            pixels = pixels.movedim(0, 1).flatten(1)[None]
        return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.movedim(0, 2)).numpy())

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        return [write_npz(folder, {"x": in_type(x, self._type)}, conditions, self.spec)]

    @property
    def groups(self) -> Tensor:
        """A pixel over all channels is an entry."""
        channels, height, width = self.spec.shape
        return torch.arange(height * width).reshape(1, height, width).expand(channels, -1, -1)

    def given_rows(self, given: Any) -> Tensor:
        return torch.from_numpy(given.own.x) if isinstance(given, GivenRows) else super().given_rows(given)

    def read_given(self, path: Path) -> GivenRows:
        """Images of a PNG file, whose transparent pixels are asked for, or of an .npy or .npz file with NaN."""
        found = read_images(path, self.spec.shape, self.pixel_range, self.spec.conditions)
        return GivenRows(self.given(torch.from_numpy(found.x)), dict(found.conditions), found)

    def write_given(self, x: Tensor, conditions: Conditions, rows: GivenRows, draws: int, folder: Path) -> list[Path]:
        """A file for each draw, draw-1 and so on, as the one read with its pixels filled, and a grid of all."""
        question, files = rows.own, []
        low, high = self.pixel_range or _range(x)
        for k in range(draws):
            own = x[k::draws]
            pixels = to_bytes(own, low, high) if question.suffix == ".png" else own
            files.append(question.answer(pixels.numpy(), folder / f"draw-{k + 1}"))
        columns = min(draws + 1, COLUMNS)
        first = slice(max(MOST // columns, 1))
        known = torch.from_numpy(question.x[first]).nan_to_num((low + high) / 2)  # grey where asked for
        drawn = x.reshape(-1, draws, *x.shape[1:])[first, : columns - 1]
        shown = torch.cat([known[:, None], drawn.to(known)], 1).flatten(0, 1)
        save_png(image_grid(shown, low, high, columns=columns), folder / "samples.png")
        return [*files, folder / "samples.png"]

    @property
    def _type(self) -> ArrayType:
        """Smallest type of whole-numbered pixels; empty for real ones."""
        low, high = self.pixel_range or (0.5, 0.5)
        if not getattr(self.transform, "integer", False) or low % 1 or high % 1:
            return {}
        ends = int(low), int(high)
        return {"dtype": np.result_type(*map(np.min_scalar_type, ends)).name, "low": [ends[0]], "high": [ends[1]]}

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """Values of black and white, if the transform knows them."""
        low, high = getattr(self.transform, "low", None), getattr(self.transform, "high", None)
        return None if low is None or high is None else (low, high)


def _range(x: Tensor) -> tuple[float, float]:
    finite = x[torch.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, high if low < high else low + 1


def to_bytes(x: Tensor, low: float, high: float) -> Tensor:
    """Map [low, high] to 0 .. 255 (uint8), clamped; NaN becomes 0."""
    if not low < high:
        raise UserError(f"low must be below high, got {low} and {high}; give the values of black and white")
    y = (x.detach().cpu().double() - low) * (255 / (high - low))
    return y.nan_to_num(0, 255, 0).clamp(0, 255).round().to(torch.uint8)


def image_grid(
    x: Tensor,
    low: float,
    high: float,
    *,
    columns: int = 8,
    rows: int | None = None,
    min_pixels: int = 48,
    captions: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Arrange x (N, C, H, W) in data units row by row, black at ``low``, white at ``high``.

    Images with a longer side under ``min_pixels`` are enlarged by a whole factor. ``rows`` bounds the number of rows.
    ``captions`` (N,), in lines, stand below the images, or once above a column that shares them, under a ``title``.
    One channel is grey, three are colour, others are shown side by side. Raises UserError for another shape, no image,
    or sizes below 1.
    """
    if x.ndim != 4 or not len(x):
        raise UserError(f"x must be images (N, C, H, W) with N >= 1, got shape {tuple(x.shape)}")
    if columns < 1 or min_pixels < 1 or (rows is not None and rows < 1):
        raise UserError(f"columns, rows and min_pixels must be at least 1, got {columns}, {rows} and {min_pixels}")
    x = x if rows is None else x[: rows * columns]
    y = to_bytes(x, low, high)
    if y.shape[1] not in (1, 3):
        y = y.movedim(1, 2).flatten(2)[:, None]
    scale = math.ceil(min_pixels / max(y.shape[2:]))
    y = y.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, c, h, w = y.shape
    columns = min(columns, n)
    lines = [fit(words, w, LETTER) for words in captions[:n]]
    above = [lines[i] for i in range(columns)] if _shared(lines, columns) else []
    strip = LINE * max(map(len, lines), default=0)
    head = LINE if lines and title else 0
    top = head + (strip if above else 0)
    pitch = h + GAP + (0 if above else strip)
    canvas = torch.full(
        (top + math.ceil(n / columns) * pitch + GAP, columns * (w + GAP) + GAP, c), BACKGROUND, dtype=torch.uint8
    )
    places = [(GAP + (i % columns) * (w + GAP), top + GAP + (i // columns) * pitch) for i in range(n)]
    for image, (left, up) in zip(y, places, strict=True):
        canvas[up : up + h, left : left + w] = image.movedim(0, 2)
    grid = Image.fromarray((canvas[..., 0] if c == 1 else canvas).numpy())
    if lines:
        words = [(GAP, 0, fit(title, grid.width - 2 * GAP, LETTER)[:1])] if title else []
        words += [
            (left, head if above else up + h, own) for (left, up), own in zip(places, above or lines, strict=False)
        ]
        _write(grid, words)
    return grid


def _shared(lines: Sequence[Sequence[str]], columns: int) -> bool:
    """Whether each column of two rows or more has one caption."""
    return len(lines) > columns and all(own == lines[i % columns] for i, own in enumerate(lines))


def _write(grid: Image.Image, words: Sequence[tuple[int, int, Sequence[str]]]) -> None:
    """Write lines at places (left, top)."""
    draw = ImageDraw.Draw(grid)
    for left, top, lines in words:
        for i, line in enumerate(lines):
            draw.text(
                (left, top + i * LINE),
                line,
                fill=TEXT if grid.mode == "RGB" else ImageColor.getrgb(TEXT)[0],
                font=font(LETTER),
            )
