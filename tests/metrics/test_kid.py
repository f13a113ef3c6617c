"""The kernel distance against scikit-learn's kernel and over many draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from advect.core.errors import UserError
from advect.metrics import kernel_distance


def gaussians(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_scikit_learn(x: np.ndarray, y: np.ndarray, **options: float) -> float:
    own, other, across = (polynomial_kernel(p, q, **options) for p, q in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    return (
        (own.sum() - np.trace(own)) / (n * (n - 1))
        + (other.sum() - np.trace(other)) / (m * (m - 1))
        - 2 * across.mean()
    )


@pytest.mark.parametrize("options", [{}, {"degree": 2, "gamma": 0.3, "coef0": 0.5}])
def test_a_subset_agrees_with_scikit_learn(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = gaussians(60, 7, 0), gaussians(83, 7, 1, 0.4)
    monkeypatch.setattr("advect.metrics.kid.CounterRng.permutation", lambda self: torch.arange(self.count))
    found = kernel_distance(x, y, size=20, **options)  # pyright: ignore[reportArgumentType]
    wanted = [by_scikit_learn(x[i : i + 20].numpy(), y[i : i + 20].numpy(), **options) for i in (0, 20, 40)]
    assert found.value == pytest.approx(np.mean(wanted), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(wanted, ddof=1) / 3**0.5, rel=1e-10)
    assert (found.subsets, found.size) == (3, 20)


def test_it_is_unbiased_and_its_standard_error_is_the_spread_over_draws() -> None:
    draws = 300
    for shift in (0.0, 0.3):
        found = [kernel_distance(gaussians(200, 3, 2 * i), gaussians(200, 3, 2 * i + 1, shift)) for i in range(draws)]
        values = np.array([f.value for f in found])
        error = np.sqrt(np.mean([f.standard_error**2 for f in found]))
        assert error == pytest.approx(values.std(), rel=0.2)
        if shift:
            assert values.min() > -0.3 and values.mean() > 5 * values.std() / draws**0.5
        else:
            assert abs(values.mean()) < 4 * values.std() / draws**0.5 and (values < 0).any()
        sizes = [kernel_distance(gaussians(4000, 3, 7), gaussians(4000, 3, 8, shift), size=s) for s in (50, 400)]
        assert sizes[0].value == pytest.approx(sizes[1].value, abs=4 * sizes[0].standard_error)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: kernel_distance(x[:3], x), r"x must be .* N >= 4, got shape \(3, 2\)"),
        (lambda x: kernel_distance(x, x, size=6), r"size must be in 2 .. 5, half of the smaller set"),
        (lambda x: kernel_distance(x, x[:, :1]), "same features, got 2 and 1"),
        (lambda x: kernel_distance(x, x * torch.inf), "y has NaN or infinite values"),
        (lambda x: kernel_distance(x, x, gamma=0), "gamma > 0"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.arange(1.0, 21).reshape(10, 2))
