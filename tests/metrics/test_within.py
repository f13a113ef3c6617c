"""Comparisons within groups."""

from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.metrics import energy_distance, mean_r2, within


def test_groups_are_compared_with_their_own_only() -> None:
    y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(3.0)
    groups = torch.arange(60) % 3
    x = y + 10.0 * (groups == 1)[:, None]
    found = within(energy_distance, x, y, groups, groups)
    assert list(found) == [0, 1, 2] and found[0] == found[2] == pytest.approx(0, abs=1e-12)
    assert found[1] == pytest.approx(energy_distance(x[1::3], y[1::3])) and found[1] > 10
    # Swapping labels leaves the sets as wholes alike, and is seen within them.
    swapped = within(
        mean_r2, torch.cat([y, y + 5]), torch.cat([y, y + 5]), torch.arange(120) // 60, 1 - torch.arange(120) // 60
    )
    assert mean_r2(y, y) == 1 and max(swapped.values()) < 0


def test_small_groups_and_rows_of_none_are_left_out() -> None:
    x = torch.arange(24.0).reshape(12, 2)
    x_groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, -1, -1, -1, -1])
    y_groups = torch.tensor([0, 0, 0, 0, 1, 3, 3, 3, -1, -1, -1, -1])
    count = lambda a, b: float(10 * len(a) + len(b))
    assert within(count, x, x, x_groups, y_groups, at_least=3) == {0: 34}
    assert within(count, x, x, x_groups, y_groups, at_least=1) == {0: 34, 1: 41}
    with pytest.raises(UserError, match="no group has 5 rows"):
        within(count, x, x, x_groups, y_groups, at_least=5)
    with pytest.raises(UserError, match="y_groups must hold 12 whole numbers"):
        within(count, x, x, x_groups, y_groups[:4])
