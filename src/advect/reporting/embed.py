"""Pictures as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advect.data.images.plot import image_grid, to_bytes

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
        with Image.open(file) as image:
            image.load()
            if image.format == "PNG" and file.stat().st_size <= limit:
                return _uri(file.read_bytes(), "png")
            return data_uri(image if image.mode in ("L", "RGB") else image.convert("RGB"), limit)
    except (OSError, ValueError, SyntaxError):
        return None


def tile_uri(x: np.ndarray, low: float, high: float) -> str:
    """One image (C, H, W) in data units, at most 6 KB."""
    y = to_bytes(torch.from_numpy(x), low, high).numpy()
    plain = y[0] if len(y) == 1 else y.transpose(1, 2, 0) if len(y) == 3 else np.concatenate(list(y), axis=1)
    return data_uri(Image.fromarray(np.ascontiguousarray(plain)), 6_000)


def strip_uri(x: np.ndarray, low: float, high: float) -> str:
    """States (T, N, C, H, W) as a grid of samples by times, at most 250 KB."""
    t, n = x.shape[:2]
    rows = torch.from_numpy(x).transpose(0, 1).reshape(t * n, *x.shape[2:])
    return data_uri(image_grid(rows, low, high, columns=t, min_pixels=72), 250_000)


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
