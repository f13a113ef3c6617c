"""A Gaussian mixture in the plane under the straight path: exact velocity, score, density and samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]], dtype=torch.float64)
SPREADS = torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


def _parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x - t m_k (B, K, 2), the variance v_k(t) (B, K), and log(share_k N(x; t m_k, v_k)) (B, K)."""
    t = t[:, None]
    away = x[:, None] - t[:, :, None] * MEANS
    variance = t**2 * SPREADS**2 + (1 - t) ** 2
    return away, variance, SHARES.log() - away.square().sum(2) / (2 * variance) - torch.log(2 * math.pi * variance)


def log_density(x: Tensor, t: Tensor) -> Tensor:
    return _parts(x, t)[2].logsumexp(1)


def score(x: Tensor, t: Tensor) -> Tensor:
    away, variance, log_part = _parts(x, t)
    return -(log_part.softmax(1)[:, :, None] * away / variance[:, :, None]).sum(1)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 - x_0 | x_t], each component's being m + (t s^2 - (1 - t)) / v (x - t m)."""
    away, variance, log_part = _parts(x, t)
    slope = (t[:, None] * SPREADS**2 - (1 - t[:, None])) / variance
    return (log_part.softmax(1)[:, :, None] * (MEANS + slope[:, :, None] * away)).sum(1)


def sample(n: int, t: float, seed: int) -> Tensor:
    """n exact samples of p_t."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(SHARES, n, replacement=True, generator=generator)
    x1 = MEANS[which] + SPREADS[which, None] * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return t * x1 + (1 - t) * torch.randn(n, 2, generator=generator, dtype=torch.float64)
