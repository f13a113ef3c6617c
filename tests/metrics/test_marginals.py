"""Marginals, energy distance and kernels against numpy, scikit-learn, SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import rbf_kernel

from advect.core.errors import UserError
from advect.metrics import (
    correlation_error,
    energy_distance,
    kolmogorov_smirnov,
    mean_r2,
    median_distance,
    rbf_mmd,
    variance_r2,
    zero_share,
)


def two_sets(n: int = 60, m: int = 80, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, d, generator=generator) + torch.arange(d) * 0.9
    y = torch.randn(m, d, generator=generator) @ torch.randn(d, d, generator=generator) + torch.arange(d)
    return x, y


def test_moments_agree_with_scikit_learn() -> None:
    x, y = two_sets()
    a, b = x.double().numpy(), y.double().numpy()
    assert mean_r2(x, y) == pytest.approx(r2_score(b.mean(0), a.mean(0)))
    assert variance_r2(x, y) == pytest.approx(r2_score(b.var(0, ddof=1), a.var(0, ddof=1)))
    assert mean_r2(y, y) == variance_r2(y, y) == 1


def test_a_shift_lowers_r2_as_it_must() -> None:
    y = torch.tensor([[0.0, 1.0, 2.0]])
    assert mean_r2(y + 1, y) == pytest.approx(1 - 3 / 2)


def test_zeros_are_counted_exactly() -> None:
    assert zero_share(torch.tensor([[0.0, 1e-30], [-0.0, 2.0]])) == 0.5


def test_correlations_agree_with_numpy_and_leave_constants_out() -> None:
    x, y = two_sets()
    gap = np.abs(np.corrcoef(x.double().numpy().T) - np.corrcoef(y.double().numpy().T))
    wanted = gap[np.triu_indices(5, 1)].mean()
    assert correlation_error(x, y) == pytest.approx(wanted)
    constant = torch.full((60, 1), 0.1)
    assert correlation_error(torch.cat([x, constant], 1), torch.cat([y, y[:, :1]], 1)) == pytest.approx(wanted)
    line = torch.arange(9.0)[:, None]
    assert correlation_error(torch.cat([line, line], 1), torch.cat([line, -line], 1)) == pytest.approx(2)
    with pytest.raises(UserError, match="two features that vary in both sets, got 1"):
        correlation_error(line, line)


def test_gaps_of_distribution_functions_agree_with_scipy() -> None:
    x, y = (v.round() for v in two_sets())  # with ties
    wanted = [stats.ks_2samp(x[:, i].numpy(), y[:, i].numpy()).statistic for i in range(5)]
    assert kolmogorov_smirnov(x, y).tolist() == pytest.approx(wanted, abs=1e-7)


def test_energy_distance_agrees_with_scipy_and_by_hand() -> None:
    x, y = two_sets(d=1)
    assert energy_distance(x, y) == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-6)
    # 2 |X - Y| over the pairs is (5 + 5) / 2 * 2 = 10; |X - X'| is 0 and |Y - Y'| has 0, 6, 6, 0.
    assert energy_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 3.0], [4.0, -3.0]])) == pytest.approx(7)
    assert energy_distance(y, y.flip(0)) == pytest.approx(0, abs=1e-12)


def test_unbiased_energy_distance_leaves_a_sample_with_itself_out() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [(torch.randn(12, 3, generator=generator), torch.randn(20, 3, generator=generator)) for _ in range(300)]
    values = torch.tensor([energy_distance(x, y, unbiased=True) for x, y in sets])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300) and (values < 0).any()
    # 2 |X - Y| is 2 (1 + 3 + 0 + 2) / 4 = 3, |X - X'| of different ones 1 and |Y - Y'| 2.
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]])
    assert energy_distance(x, y, unbiased=True) == pytest.approx(3 - 1 - 2)


def test_mmd_agrees_with_scikit_learn_kernels() -> None:
    x, y = two_sets()
    a, b = x.double().numpy(), y.double().numpy()
    scale = float(np.median(pdist(b)))
    assert median_distance(y) == pytest.approx(scale, rel=1e-2)
    biased = unbiased = 0.0
    for w in (0.5, 2.0):
        gamma = 1 / (2 * (w * 3.0) ** 2)
        k = [rbf_kernel(p, q, gamma=gamma) for p, q in ((a, a), (b, b), (a, b))]
        biased += (k[0].mean() + k[1].mean() - 2 * k[2].mean()) / 2
        off = [(m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in k[:2]]
        unbiased += (sum(off) - 2 * k[2].mean()) / 2
    assert rbf_mmd(x, y, widths=(0.5, 2), scale=3.0) == pytest.approx(biased, abs=1e-12)
    assert rbf_mmd(x, y, widths=(0.5, 2), scale=3.0, unbiased=True) == pytest.approx(unbiased, abs=1e-12)


def test_unbiased_mmd_has_mean_zero_and_the_biased_one_has_not() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [(torch.randn(20, 2, generator=generator), torch.randn(20, 2, generator=generator)) for _ in range(200)]
    values = torch.tensor([rbf_mmd(x, y, scale=1.0, unbiased=True) for x, y in sets])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(200) and (values < 0).any()
    assert min(rbf_mmd(x, y, scale=1.0) for x, y in sets) > 0


def test_mmd_of_gaussians_has_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(3000, 1, generator=generator), torch.randn(3000, 1, generator=generator) + 2
    # E k over N(0, 2) and N(2, 2) for width 1: sqrt(1/3) and sqrt(1/3) exp(-4/6).
    wanted = 2 * math.sqrt(1 / 3) * (1 - math.exp(-4 / 6))
    assert rbf_mmd(x, y, widths=(1,), scale=1.0, unbiased=True) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: mean_r2(x, x[:, :2]), "same features, got 3 and 2"),
        (lambda x: mean_r2(x, torch.zeros(4, 3)), "means in y are all equal"),
        (lambda x: variance_r2(x[:1], x), "N >= 2"),
        (lambda x: energy_distance(x * torch.nan, x), "NaN or infinite values in 4 of 4"),
        (lambda x: rbf_mmd(x, x, widths=(0,)), "widths must be one or more numbers > 0"),
        (lambda x: rbf_mmd(x, x, scale=0.0), "scale must be > 0, got 0.0"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.arange(12.0).reshape(4, 3))


def test_mmd_of_rare_events_has_a_scale() -> None:
    x, y = torch.zeros(100, 2), torch.zeros(100, 2)
    y[:5] = 1
    assert median_distance(y) == pytest.approx(2**0.5)
    assert rbf_mmd(x, y) > 0 and rbf_mmd(y, x) == pytest.approx(rbf_mmd(x, y), rel=0.5) and rbf_mmd(x, x) == 0
