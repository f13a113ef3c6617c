"""Precision, recall, density and coverage against brute force, and in the cases of the papers that define them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from advect.core.errors import UserError
from advect.metrics import expected_coverage, precision_recall


def gaussians(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("rows", [7, 64, 10_000])
@pytest.mark.parametrize("k", [1, 3])
def test_equals_brute_force_whatever_the_blocks(rows: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["advect.metrics.precision_recall"]
    monkeypatch.setattr(module, "block_rows", lambda dimension, memory_mb: rows)
    x, y = gaussians(150, 4, 0, 0.5), gaussians(120, 4, 1)
    a, b = x.double().numpy(), y.double().numpy()
    reach = lambda v: np.sort(cdist(v, v), 1)[:, k]
    between = cdist(a, b)
    in_data, in_samples = between <= reach(b), between <= reach(a)[:, None]
    found = precision_recall(x, y, k=k)
    wanted = (in_data.any(1).mean(), in_samples.any(0).mean(), in_data.sum(1).mean() / k, in_data.any(0).mean())
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(wanted, abs=1e-12)


def test_equal_laws_have_density_one_and_the_expected_coverage_in_any_dimension() -> None:
    assert expected_coverage(10**9, 10**9, k=5) == pytest.approx(1 - 2**-5, abs=1e-6)
    for d in (2, 64):
        found = precision_recall(gaussians(2000, d, 2), gaussians(2000, d, 3))
        assert found.density == pytest.approx(1, abs=0.08)
        assert found.coverage == pytest.approx(expected_coverage(2000, 2000), abs=0.02)
        assert min(found.precision, found.recall) > 0.6
    few = [precision_recall(gaussians(50, 8, i), gaussians(400, 8, 1000 + i)).coverage for i in range(30)]
    assert np.mean(few) == pytest.approx(expected_coverage(50, 400), abs=0.03)


def test_one_outlier_in_the_data_fools_precision_and_not_density() -> None:
    # Naeem et al. (2020, fig. 4): samples lie around a single stray row of the data, far from all others.
    y = gaussians(1000, 16, 4)
    stray = torch.cat([y, torch.full((1, 16), 3.0)])
    x = gaussians(1000, 16, 5, 3.0)
    assert precision_recall(x, y).precision < 0.05
    found = precision_recall(x, stray)
    assert found.precision > 0.95 and found.density < 0.35 and found.coverage < 0.05


def test_one_outlier_in_the_samples_fools_recall_and_not_coverage() -> None:
    y, x = gaussians(1000, 16, 6, 3.0), gaussians(1000, 16, 7)
    found = precision_recall(torch.cat([x, torch.full((1, 16), 3.0)]), y)
    assert found.recall > 0.95 and found.coverage < 0.1  # those around the centre, where the stray one is


def test_dropped_and_invented_modes_are_told_apart() -> None:
    # Five clusters of data: samples in two of them are precise, samples in ten have all of the data and as much more.
    corner = 20.0 * torch.eye(10)
    cluster = lambda which, seed: corner[torch.arange(1000) % which] + gaussians(1000, 10, seed)
    y = cluster(5, 8)
    few, many = precision_recall(cluster(2, 9), y), precision_recall(cluster(10, 10), y)
    assert few.precision > 0.75 and few.recall < 0.42 and 0.3 < few.coverage < 0.42
    assert many.precision < 0.52 and many.recall > 0.75 and many.density == pytest.approx(0.5, abs=0.1)


def test_copies_lie_in_their_own_balls_even_of_radius_zero() -> None:
    y = gaussians(40, 300, 11) * 5 + 1e3
    twice = y.repeat(3, 1)  # the second neighbour of each row is a copy of it
    found = precision_recall(y, twice, k=2)
    assert (found.precision, found.coverage) == (1, 1)
    assert precision_recall(y, y, k=3).density == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: precision_recall(x[:5], x), r"x must be .* N >= 6, got shape \(5, 2\)"),
        (lambda x: precision_recall(x, x, k=0), "k must be at least 1, got 0"),
        (lambda x: precision_recall(x, x[:, :1]), "same features, got 2 and 1"),
        (lambda x: precision_recall(x, x, memory_mb=0), "memory_mb must be at least 1"),
        (lambda x: precision_recall(x, x * torch.nan), "y has NaN or infinite values in 10 of 10"),
        (lambda x: expected_coverage(5, 5), "k in 1 .. m - 1"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.arange(20.0).reshape(10, 2))
