"""A comparison of samples with data taken within each of several groups, such as types of cells."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import NULL


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
