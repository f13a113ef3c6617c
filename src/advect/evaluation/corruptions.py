"""Corruptions of images that a network learns to recognise, so that its features see what models get wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 4
"""Tiles along a side, for shuffled images."""

Corruption = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def _uniform(x: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Numbers (n, 1, 1, 1), one an image."""
    return torch.rand(len(x), 1, 1, 1, generator=rng) * (high - low) + low


def blur(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """Gaussian blur of 2% to 6% of the side."""
    n, c, h, w = x.shape
    reach = max(2, h // 6)
    width = _uniform(x, 0.02, 0.06, rng).flatten(1) * max(h, 20)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * width**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    y = x.reshape(1, n * c, h, w)
    for shape, pad in (((n * c, 1, 1, -1), (reach, reach, 0, 0)), ((n * c, 1, -1, 1), (0, 0, reach, reach))):
        y = F.conv2d(F.pad(y, pad, mode="replicate"), kernel.reshape(shape), groups=n * c)
    return y.reshape(n, c, h, w)


def noise(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """Gaussian noise of 2.5% to 20% of the range."""
    return x + _uniform(x, 0.05, 0.4, rng) * torch.randn(x.shape, generator=rng)


def shuffle(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """About half of GRID x GRID tiles replaced by others of the image."""
    n, c, h, _ = x.shape
    q = h // GRID
    tiles = x.reshape(n, c, GRID, q, GRID, q).permute(0, 2, 4, 1, 3, 5).reshape(n, GRID**2, c, q, q)
    order = torch.rand(n, GRID**2, generator=rng).argsort(1)
    order = torch.where(torch.rand(order.shape, generator=rng) < 0.5, torch.arange(GRID**2), order)
    tiles = tiles.gather(1, order[:, :, None, None, None].expand_as(tiles))
    return tiles.reshape(n, GRID, GRID, c, q, q).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def blend(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """Another image shines through."""
    share = _uniform(x, 0.25, 0.5, rng)
    return (1 - share) * x + share * other


def warp(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """Smooth displacement of 2.5% to 10% of the side."""
    field = F.interpolate(torch.randn(len(x), 2, 5, 5, generator=rng), x.shape[2:], mode="bicubic")
    field = field.movedim(1, 3) * _uniform(x, 0.05, 0.2, rng)
    place = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, place + field, padding_mode="border", align_corners=False)


def tone(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """Less contrast, and a shift of each channel."""
    return x * _uniform(x, 0.5, 0.85, rng) + 0.15 * torch.randn(*x.shape[:2], 1, 1, generator=rng)


def paste(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """A rectangle of another image, a third to a half of each side."""
    n, _, h, w = x.shape
    share = torch.rand(2, n, 1, generator=rng) * 0.25 + 0.3
    first = torch.rand(2, n, 1, generator=rng) * (1 - share)
    rows, columns = (
        (torch.arange(size) / size >= first[i]) & (torch.arange(size) / size < first[i] + share[i])
        for i, size in enumerate((h, w))
    )
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], other, x)


CORRUPTIONS: tuple[Corruption, ...] = (blur, noise, shuffle, blend, warp, tone, paste)
KINDS = 1 + len(CORRUPTIONS)
"""Kinds of images: 0 as they are, i of the i-th corruption."""


def corrupt(x: Tensor, kinds: Tensor, rng: torch.Generator) -> Tensor:
    """Images x (n, C, H, H) in [-1, 1], each corrupted by its kind (n,); two or more of them, and H a multiple of
    GRID."""
    other, y = x.roll(1, 0), x.clone()
    for kind, corruption in enumerate(CORRUPTIONS, 1):
        chosen = kinds == kind
        if chosen.any():
            y[chosen] = corruption(x[chosen], other[chosen], rng)
    return y
