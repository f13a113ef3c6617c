"""Wasserstein distances against POT, SciPy and closed forms."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from scipy import stats

from advect.core.errors import UserError
from advect.metrics import sliced_wasserstein, wasserstein


def two_sets(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, d, generator=generator), 2 * torch.randn(m, d, generator=generator) + 1


@pytest.mark.parametrize("order", [1, 2])
def test_exact_agrees_with_pot(order: int) -> None:
    x, y = two_sets(70, 70, 4)
    a, b = x.double().numpy(), y.double().numpy()
    cost = ot.dist(a, b, metric="euclidean") ** order
    assert wasserstein(x, y, order=order) == pytest.approx(ot.emd2([], [], cost) ** (1 / order), rel=1e-9)
    assert wasserstein(x, x.flip(0), order=order) == 0
    assert wasserstein(x, x + torch.tensor([3.0, 0, 0, 4]), order=order) == pytest.approx(5, rel=1e-6)


def test_sliced_in_one_dimension_is_the_exact_one() -> None:
    x, y = two_sets(40, 64, 1)
    wanted = stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y, order=1, lines=3) == pytest.approx(wanted, rel=1e-6)
    assert sliced_wasserstein(x[:40], y[:40]) == pytest.approx(wasserstein(x[:40], y[:40], order=2), rel=1e-6)
    assert sliced_wasserstein(y, y.flip(0), order=1) == 0


def test_a_shift_is_seen_by_lines_as_its_closed_form() -> None:
    # E (u . s)^2 over directions u is |s|^2 / d.
    x, _ = two_sets(30, 1, 8)
    shift = torch.zeros(8)
    shift[2] = 6.0
    assert sliced_wasserstein(x, x + shift, lines=20_000) == pytest.approx(6 / math.sqrt(8), rel=0.03)
    assert sliced_wasserstein(x, x + shift, seed=1) != sliced_wasserstein(x, x + shift, seed=2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: wasserstein(x, x[:3]), "as many rows, got 4 and 3"),
        (lambda x: wasserstein(x, x, order=3), "order must be 1 or 2, got 3"),
        (lambda x: sliced_wasserstein(x, x, lines=0), "lines must be at least 1, got 0"),
        (lambda x: sliced_wasserstein(x, x[:, :2]), "same features, got 3 and 2"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.arange(12.0).reshape(4, 3))
