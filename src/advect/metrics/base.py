"""A comparison of samples with data taken within each of several groups, such as types of cells."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import NULL


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


def within(
    measure: Callable[[Tensor, Tensor], float],
    x: Tensor,
    y: Tensor,
    x_groups: Tensor,
    y_groups: Tensor,
    *,
    at_least: int = 2,
) -> dict[int, float]:
    """``measure(x, y)`` of the rows of x (N, *S) and y (M, *S) in each group, whose whole numbers are (N,) and (M,).

    Groups of fewer than ``at_least`` rows in either set are left out, as are rows of no group (NULL); the mean of the
    values counts each group alike. Raises UserError where the lengths do not fit, or no group is left.
    """
    for name, rows, groups in (("x", x, x_groups), ("y", y, y_groups)):
        if groups.shape != rows.shape[:1]:
            raise UserError(
                f"{name}_groups must hold {len(rows)} whole numbers, one a row of {name}, got {tuple(groups.shape)}"
            )
    shared = sorted(set(x_groups.tolist()) & set(y_groups.tolist()) - {NULL})
    parts = {group: (x[x_groups == group], y[y_groups == group]) for group in shared}
    kept = {group: pair for group, pair in parts.items() if min(map(len, pair)) >= at_least}
    if not kept:
        raise UserError(f"no group has {at_least} rows in both x and y; give more samples or a smaller at_least")
    return {group: measure(*pair) for group, pair in kept.items()}
