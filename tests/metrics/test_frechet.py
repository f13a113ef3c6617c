"""The Frechet distance against closed forms and SciPy's square root of a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from advect.core.errors import UserError
from advect.metrics import GaussianFit, frechet_distance


def scipy_distance(m1, c1, m2, c2):
    return np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)


def moments(x):
    return x.mean(0), np.cov(x, rowvar=False)


@pytest.mark.parametrize("dimension", [2, 17, 64])
def test_equals_scipy_on_correlated_sets(dimension):
    rng = np.random.default_rng(dimension)
    x = rng.normal(size=(400, dimension)) @ rng.normal(size=(dimension, dimension))
    y = rng.normal(size=(300, dimension)) @ rng.normal(size=(dimension, dimension)) + 0.5
    expected = scipy_distance(*moments(x), *moments(y))
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-6)
    fits = [GaussianFit.from_moments(*map(torch.from_numpy, moments(z))) for z in (x, y)]
    assert fits[0].distance(fits[1]) == pytest.approx(expected, rel=1e-6)


def test_closed_form_of_diagonal_gaussians():
    a, b = torch.tensor([1.0, 4.0, 9.0, 0.0]), torch.tensor([4.0, 1.0, 9.0, 25.0])
    first = GaussianFit.from_moments(torch.zeros(4), a.diag())
    second = GaussianFit.from_moments(torch.tensor([3.0, 0.0, 0.0, 4.0]), b.diag())
    assert first.distance(second) == pytest.approx(25 + 1 + 1 + 0 + 25, rel=1e-12)


def test_scaling_and_shifting_fewer_samples_than_dimensions():
    """y = 3 x + c has the distance (3 - 1)^2 tr C + |2 m + c|^2, whatever the rank."""
    x = torch.randn(20, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, variance = x.mean(0), x.var(0).sum()
    expected = 4 * variance + (2 * mean + 7).square().sum()
    assert frechet_distance(x, 3 * x + 7) == pytest.approx(float(expected), rel=1e-10)


def test_sets_in_orthogonal_subspaces_share_nothing():
    x, y = torch.zeros(50, 6, dtype=torch.float64), torch.zeros(60, 6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x[:, :2] = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    y[:, 3:] = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-12)


def test_a_set_lies_at_zero_from_itself_even_with_constant_pixels():
    x = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    x[..., 0] = 5.0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-10)


def test_small_differences_survive_large_offsets():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    near = frechet_distance(x, 2 * x)
    assert frechet_distance(x + 1e6, 2 * x + 1e6) == pytest.approx(near, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "x must be .* N >= 2, got shape \\(1, 3\\)"),
        (torch.zeros(5, 3), torch.zeros(5), "y must be"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "same dimension, got 3 and 4"),
        (torch.zeros(5, 3), torch.full((5, 3), torch.nan), "y has NaN or infinite values in 5 of 5"),
    ],
)
def test_mistakes_are_told(x, y, text):
    with pytest.raises(UserError, match=text):
        frechet_distance(x, y)


def test_moments_that_are_none():
    with pytest.raises(UserError, match="eigenvalues >= 0, got -2"):
        GaussianFit.from_moments(torch.zeros(2), torch.tensor([1.0, -2.0]).diag())
    with pytest.raises(UserError, match=r"must be \(D, D\)"):
        GaussianFit.from_moments(torch.zeros(3), torch.eye(2))
    with pytest.raises(UserError, match="finite"):
        GaussianFit.from_moments(torch.zeros(2), torch.eye(2) * torch.inf)
