"""Embeddings of positions, time and conditions."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.errors import UserError, did_you_mean
from advect.core.types import Conditions, is_null
from advect.networks.base import check_choice
from advect.networks.encoders import Encoder

Positions = Literal["sincos", "rotary"]
Resize = Literal["interpolate", "extrapolate"]
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (N, d / 2) of the rotation angles of a head's d / 2 channel pairs at N positions."""


def coordinates(size: int, trained: int, resize: Resize, device: torch.device | None = None) -> Tensor:
    """Positions (size,) of tokens along an axis trained at 0 .. trained - 1.

    "interpolate" stretches other sizes to the trained range, aligning pixel edges; "extrapolate" keeps the spacing.
    """
    places = torch.arange(size, device=device, dtype=torch.float32)
    return places if resize == "extrapolate" else (places + 0.5) * (trained / size) - 0.5


def _angles(places: Tensor, count: int, base: float) -> Tensor:
    """positions (N,) times ``count`` geometric frequencies from 1 towards 1 / base, (N, count)."""
    octave = torch.arange(count, device=places.device, dtype=places.dtype) / count
    return places[:, None] * base**-octave


def _on_grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Combine features of rows (H, k) and columns (W, k), row by row, to (H W, 2 k)."""
    h, w = len(rows), len(columns)
    return torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], 2).flatten(0, 1)


def grid_sincos(rows: Tensor, columns: Tensor, features: int) -> Tensor:
    """Sinusoidal embeddings (H W, features) of rows (H,) and columns (W,), half each (Vaswani et al. 2017).

    ``features`` must be a multiple of 4.
    """
    each = [_angles(places, features // 4, 10_000.0) for places in (rows, columns)]
    return _on_grid(*(torch.cat([angles.sin(), angles.cos()], 1) for angles in each))


def grid_rotation(rows: Tensor, columns: Tensor, features: int) -> Rotation:
    """Axial rotary embedding of heads of ``features`` channels: half the pairs by row, half by column.

    ``features`` must be a multiple of 4. The base is 100 (Heo et al. 2024, "Rotary position embedding for vision
    transformer").
    """
    angles = _on_grid(*(_angles(places, features // 4, 100.0) for places in (rows, columns)))
    return angles.cos(), angles.sin()


def line_rotation(places: Tensor, features: int) -> Rotation:
    """Rotary embedding of heads of ``features`` channels (even) at positions (N,) (Su et al. 2021)."""
    angles = _angles(places, features // 2, 10_000.0)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of x (B, heads, N, d)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def prepend_identity(rotation: Rotation, count: int) -> Rotation:
    """Add ``count`` unrotated tokens in front."""
    cos, sin = rotation
    return (
        torch.cat([cos.new_ones(count, cos.shape[1]), cos]),
        torch.cat([sin.new_zeros(count, sin.shape[1]), sin]),
    )


TimeKind = Literal["sinusoidal", "fourier", "smooth"]


@dataclass(frozen=True)
class Vector:
    """Continuous condition of ``size`` standardised numbers; a row of NaN if not given.

    They are embedded as they are, or by what an ``encoder`` makes of them, of which each network has a copy.
    """

    size: int
    encoder: Encoder | None = None


ConditionSizes = Mapping[str, int | Vector]
"""Number of classes, or a :class:`Vector`, by condition."""


def sinusoids(t: Tensor, features: int) -> Tensor:
    """Sines and cosines (B, features) of 1000 t, t (B,) in [0, 1], at wavelengths 2 pi to 2 pi 10^4 (Ho et al. 2020).

    In float32 at least: bfloat16 would round 1000 t to multiples of 4.
    """
    half = (features + 1) // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    octave = torch.arange(half, device=t.device, dtype=t.dtype) / half
    angles = 1000.0 * t[:, None] * torch.exp(-math.log(10_000.0) * octave)
    return torch.cat([angles.cos(), angles.sin()], 1)[:, :features]


FASTEST = 16.0
"""Highest frequency of :func:`smooth_sinusoids`, the largest derivative of one in t."""


def smooth_sinusoids(t: Tensor, features: int) -> Tensor:
    """Sines and cosines (B, features) of w t, t (B,) in [0, 1], with w from 1 to ``FASTEST`` by equal ratios.

    For losses with derivatives in t, which those of 1000 t make so large that training diverges (Lu & Song 2025,
    "Simplifying, stabilizing and scaling continuous-time consistency models", section 4).
    """
    half = (features + 1) // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    angles = t[:, None] * FASTEST ** torch.linspace(0, 1, half, device=t.device, dtype=t.dtype)
    return torch.cat([angles.cos(), angles.sin()], 1)[:, :features]


class FourierFeatures(nn.Module):
    """Sines and cosines (B, features) of 2 pi w t, t (B,), with random frequencies w ~ N(0, scale^2) in a buffer.

    Tancik et al. 2020, "Fourier features let networks learn high frequency functions"; scale 16 as in Song et al.
    2021.
    """

    frequencies: Tensor

    def __init__(self, features: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("frequencies", scale * torch.randn((features + 1) // 2))

    def forward(self, t: Tensor) -> Tensor:
        dtype = torch.promote_types(t.dtype, torch.float32)
        angles = 2 * math.pi * t.to(dtype)[:, None] * self.frequencies.to(dtype)
        return torch.cat([angles.cos(), angles.sin()], 1)[:, : self.features]


class TimeEmbedding(nn.Module):
    """Embed t (B,) in [0, 1] as (B, dim): ``width`` features, linear, SiLU, linear; ``dim`` is 4 width by default."""

    def __init__(self, width: int, dim: int | None = None, *, kind: TimeKind = "sinusoidal") -> None:
        super().__init__()
        check_choice("TimeEmbedding", "kind", kind, get_args(TimeKind))
        dim = dim or 4 * width
        self.width = width
        self.fourier = FourierFeatures(width) if kind == "fourier" else None
        self.sinusoids = smooth_sinusoids if kind == "smooth" else sinusoids
        self.widen = nn.Linear(width, dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        features = self.sinusoids(t, self.width) if self.fourier is None else self.fourier(t)
        return self.mix(F.silu(self.widen(features.to(self.widen.weight.dtype))))


class ConditionEmbedding(nn.Module):
    """Add the embeddings of a sample's conditions to h (B, dim).

    ``sizes`` maps a condition to its number of classes, or to a :class:`Vector` embedded by an MLP. Row 0 of each
    table is the learned null, row v + 1 the class v. A row with NaN, or an absent condition, is null. Class values are
    not checked: PyTorch's embedding raises IndexError on the CPU, a device-side assertion on CUDA.

    Raises UserError for a size below 1, an unknown name, or a condition whose shape is not (B,) or (B, size).
    """

    def __init__(self, sizes: ConditionSizes, dim: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            count, what = (size.size, "number") if isinstance(size, Vector) else (size, "value")
            if count < 1:
                raise UserError(f"the condition {name!r} must have at least 1 {what}, got {count}")
        self.sizes = dict(sizes)
        # Lists, as a ParameterDict would refuse names such as "cell.line".
        rows = (1 if isinstance(size, Vector) else size + 1 for size in sizes.values())
        self.tables = nn.ParameterList(torch.randn(n, dim) for n in rows)
        self.maps = nn.ModuleList(_vector_map(size, dim) for size in sizes.values() if isinstance(size, Vector))

    def forward(self, h: Tensor, cond: Conditions | None = None) -> Tensor:
        cond = cond or {}
        for name, value in cond.items():
            self._check(name, value, h.shape[0])
        maps = iter(self.maps)
        for (name, size), table in zip(self.sizes.items(), self.tables, strict=True):
            embed = next(maps) if isinstance(size, Vector) else None
            if name not in cond:
                h = h + table[0]
            elif embed is None:
                h = h + F.embedding(cond[name] + 1, table)
            else:
                h = h + _embed_vectors(cond[name].to(table.dtype), embed, table[0])
        return h

    def _check(self, name: str, value: Tensor, batch: int) -> None:
        if name not in self.sizes:
            fix = did_you_mean(name, self.sizes) if self.sizes else "; it has none, so pass cond=None"
            raise UserError(f"the network has no condition {name!r}{fix}")
        size = self.sizes[name]
        shape, what = ((batch, size.size), "row") if isinstance(size, Vector) else ((batch,), "value")
        if value.shape != shape:
            raise UserError(
                f"the condition {name!r} must have shape {shape}, one {what} a sample, got {tuple(value.shape)}"
            )


def _vector_map(vector: Vector, dim: int) -> nn.Sequential:
    """An MLP (B, size) -> (B, dim), of what the encoder finds, if any."""
    first = [] if vector.encoder is None else [copy.deepcopy(vector.encoder)]
    features = vector.size if vector.encoder is None else vector.encoder.features
    return nn.Sequential(*first, nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))


def _embed_vectors(value: Tensor, embed: nn.Module, null: Tensor) -> Tensor:
    """Embeddings (B, dim) of rows (B, d), ``null`` for those with NaN."""
    missing = is_null(value)[:, None]
    return torch.where(missing, null, embed(torch.where(missing, 0.0, value)))
