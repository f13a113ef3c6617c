"""A grid of images."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError

GAP, BACKGROUND = 2, 255


def to_bytes(x: Tensor, low: float, high: float) -> Tensor:
    """Map [low, high] to 0 .. 255 (uint8), values outside to the nearer end and NaN to 0."""
    if not low < high:
        raise UserError(f"low must be below high, got {low} and {high}; give the values of black and white")
    y = (x.detach().cpu().double() - low) * (255 / (high - low))
    return y.nan_to_num(0, 255, 0).clamp(0, 255).round().to(torch.uint8)


def image_grid(
    x: Tensor, low: float, high: float, *, columns: int = 8, rows: int | None = None, min_pixels: int = 48
) -> Image.Image:
    """Arrange x (N, C, H, W), in data units with black at ``low`` and white at ``high``, row by row.

    Images whose longer side is under ``min_pixels`` are enlarged by a whole factor, each pixel to a square.
    ``rows`` bounds the number of rows. One channel is shown grey and three in colour; any other number of
    channels side by side. Raises UserError for another shape, no image, or sizes below 1.
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
    rows = math.ceil(n / columns)
    canvas = torch.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, c), BACKGROUND, dtype=torch.uint8)
    for i, image in enumerate(y):
        top, left = GAP + (i // columns) * (h + GAP), GAP + (i % columns) * (w + GAP)
        canvas[top : top + h, left : left + w] = image.movedim(0, 2)
    return Image.fromarray((canvas[..., 0] if c == 1 else canvas).numpy())
