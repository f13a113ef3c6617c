from __future__ import annotations

import pytest
import torch
from scipy import stats

from advect.core.random import CounterRng
from advect.sources import Gaussian


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_is_standard_in_every_direction(dtype):
    n = 20_000
    for generator in (CounterRng(0, 1, n), torch.Generator().manual_seed(1)):
        x = Gaussian().sample((n, 1, 2, 2), generator, dtype=dtype)
        assert x.dtype == dtype
        assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
        covariance = x.flatten(1).T.cov()
        assert (covariance - torch.eye(4)).abs().max() < 5 * (2 / n) ** 0.5


def test_gaussian_with_a_torch_generator_is_randn():
    x = Gaussian().sample((5, 3), torch.Generator().manual_seed(9))
    assert torch.equal(x, torch.randn(5, 3, generator=torch.Generator().manual_seed(9)))


def test_sample_like_takes_shape_and_dtype_but_no_value():
    x1 = torch.full((6, 2, 3), 1e9, dtype=torch.float64)
    x0 = Gaussian().sample_like(x1, CounterRng(0, 0, 6))
    assert x0.shape == x1.shape and x0.dtype == x1.dtype
    assert x0.abs().max() < 6.8
    assert (x1 == 1e9).all()
