"""What every metric asks of a set of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.errors import UserError


def check_samples(x: Tensor, argument: str, *, at_least: int = 1) -> Tensor:
    """Flatten x (N, *S) to (N, D); UserError for fewer than ``at_least`` rows and for NaN or infinite values."""
    if x.ndim < 2 or len(x) < at_least:
        raise UserError(
            f"{argument} must be (N, ...) with N >= {at_least}, got shape {tuple(x.shape)}; give more samples"
        )
    x = x.detach().flatten(1)
    if x.is_floating_point() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise UserError(f"{argument} has NaN or infinite values in {bad} of {len(x)} samples; leave those out")
    return x


def check_pair(x: Tensor, y: Tensor, *, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets (N, *S) and (M, *S) as (N, D) and (M, D), float64; UserError where D differs, and as above."""
    a = check_samples(x, "x", at_least=at_least).double()
    b = check_samples(y, "y", at_least=at_least).to(a)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"x and y must have the same features, got {a.shape[1]} and {b.shape[1]}; compare one shape")
    return a, b
