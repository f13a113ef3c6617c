"""Where a token stands: fixed sines and cosines to add, or rotations of queries and keys."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Positions = Literal["sincos", "rotary"]
Resize = Literal["interpolate", "extrapolate"]
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (N, d / 2) of the angles by which the pairs of a head's d channels turn at N places."""


def coordinates(size: int, trained: int, resize: Resize, device: torch.device | None = None) -> Tensor:
    """The places (size,) of the tokens along one axis: 0 .. trained - 1, when ``size`` is what was trained on.

    Other sizes are stretched to the trained range, pixel edges meeting ("interpolate"), or run on at the same
    spacing ("extrapolate").
    """
    places = torch.arange(size, device=device, dtype=torch.float32)
    return places if resize == "extrapolate" else (places + 0.5) * (trained / size) - 0.5


def _angles(places: Tensor, count: int, base: float) -> Tensor:
    """places (N,) times ``count`` frequencies from 1 down towards 1 / base, (N, count)."""
    octave = torch.arange(count, device=places.device, dtype=places.dtype) / count
    return places[:, None] * base**-octave


def _on_grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Join what belongs to each row (H, k) and column (W, k) of a grid, row by row, to (H W, 2 k)."""
    h, w = len(rows), len(columns)
    return torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], 2).flatten(0, 1)


def grid_sincos(rows: Tensor, columns: Tensor, features: int) -> Tensor:
    """Sines and cosines (H W, features) of the places on a grid, half of them for its rows (H,), half for its columns.

    ``features`` is a multiple of 4. Frequencies are those of Vaswani et al. (2017), each axis as one of theirs.
    """
    each = [_angles(places, features // 4, 10_000.0) for places in (rows, columns)]
    return _on_grid(*(torch.cat([angles.sin(), angles.cos()], 1) for angles in each))


def grid_rotation(rows: Tensor, columns: Tensor, features: int) -> Rotation:
    """The rotation of heads of ``features`` channels on a grid: half the pairs turn with the row.

    The other half turns with the column; ``features`` is a multiple of 4. The base is 100, as images have few
    places an axis (Heo et al. 2024, "Rotary position embedding for vision transformer").
    """
    angles = _on_grid(*(_angles(places, features // 4, 100.0) for places in (rows, columns)))
    return angles.cos(), angles.sin()


def line_rotation(places: Tensor, features: int) -> Rotation:
    """The rotation of heads of ``features`` channels (even) at places (N,) of a sequence (Su et al. 2021)."""
    angles = _angles(places, features // 2, 10_000.0)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of x (B, heads, N, d): then q.k depends on the difference of places alone."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def stay(rotation: Rotation, count: int) -> Rotation:
    """The same rotation with ``count`` tokens in front that do not turn."""
    cos, sin = rotation
    return (
        torch.cat([cos.new_ones(count, cos.shape[1]), cos]),
        torch.cat([sin.new_zeros(count, sin.shape[1]), sin]),
    )
