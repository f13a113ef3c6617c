"""A mixture of products of laws of three categories, and its exact posterior on an affine path."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from advect.core.types import Batch, Code
from advect.paths import AffinePath

SIZES = (3, 2, 4)


def one_hot(categories: Tensor) -> Tensor:
    """Categories (n, 3) of SIZES as codes (n, 8)."""
    parts = []
    for column, size in zip(categories.unbind(1), SIZES, strict=True):
        hot = torch.nn.functional.one_hot(column, size).double() * 2 - 1
        parts.append(hot[:, 1:] if size == 2 else hot)
    return torch.cat(parts, 1)


CELLS = torch.tensor(list(itertools.product(*map(range, SIZES))))
"""All 24 combinations."""


def joint(seed: int = 0) -> Tensor:
    """A mixture of three products of laws of the categories: probabilities (24,)."""
    g = torch.Generator().manual_seed(seed)
    law = torch.zeros(len(CELLS), dtype=torch.float64)
    for weight in (0.5, 0.3, 0.2):
        own = [torch.rand(size, generator=g, dtype=torch.float64).pow(3) + 0.01 for size in SIZES]
        own = [p / p.sum() for p in own]
        law += weight * math.prod((p[c] for p, c in zip(own, CELLS.unbind(1), strict=True)), start=torch.ones(24))
    return law


def shares() -> list[Tensor]:
    """Law of each category by itself."""
    law = joint()
    return [torch.stack([law[CELLS[:, i] == k].sum() for k in range(size)]) for i, size in enumerate(SIZES)]


CODES = tuple(
    Code(start, tuple(own[1:].tolist() if len(own) == 2 else own.tolist()))
    for start, own in zip((0, 3, 4), shares(), strict=True)
)
"""A category of three values, one of two, one of four, and their shares."""


def cells_given(x: Tensor, t: Tensor, path: AffinePath, known: Tensor | None = None) -> Tensor:
    """Posterior (n, 24) of the combinations given x_t = x, by Bayes' rule; x (n, 8) is data where ``known``."""
    c, x = path.coefficients(t.double()), x.double()
    alpha, sigma = (v.expand(len(x))[:, None].expand(x.shape) for v in (c.alpha, c.sigma.clamp(min=1e-4)))
    if known is not None:
        alpha, sigma = torch.where(known, 1.0, alpha), torch.where(known, 1e-3, sigma)
    far = ((x[:, None] - alpha[:, None] * one_hot(CELLS)) / sigma[:, None]).square().sum(2)
    return (joint().log() - far / 2).softmax(1)


def exact_logits(x: Tensor, t: Tensor, path: AffinePath, known: Tensor | None = None) -> Tensor:
    """Logits (n, 8) of each category given x_t = x, and x itself where ``known``."""
    p, parts = cells_given(x, t, path, known), []
    for column, size in zip(CELLS.unbind(1), SIZES, strict=True):
        own = torch.stack([p[:, column == k].sum(1) for k in range(size)], 1).clamp(min=1e-300).log()
        parts.append(own[:, 1:] - own[:, :1] if size == 2 else own)
    return torch.cat(parts, 1)


def draws(n: int, seed: int = 0) -> Batch:
    cells = torch.multinomial(joint(), n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return Batch(one_hot(CELLS[cells]))


def total_variation(cells: Tensor, law: Tensor) -> float:
    """Half the sum of |share - probability| of combinations (n,) int64 below len(law)."""
    return 0.5 * float((torch.bincount(cells, minlength=len(law)) / len(cells) - law).abs().sum())


def by_chance(law: Tensor, n: int) -> float:
    """Mean total variation of n draws to their own law: half the sum of sqrt(2 p (1 - p) / (pi n)), about."""
    return 0.5 * float((law * (1 - law) * 2 / (math.pi * n)).sqrt().sum())
