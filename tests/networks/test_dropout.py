from __future__ import annotations

import pytest
import torch

from advect.networks.layers import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_zero_at_the_rate_asked_for_and_scaled_otherwise(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(400, 500, dtype=dtype), p)
    kept = out != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / kept.numel()) ** 0.5)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)), rtol=2e-4, atol=1e-2 * (p > 0.5))


def test_neighbours_fall_independently() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(2**18), 0.3) != 0).double() - 0.7
    for lag in range(1, 9):
        assert abs((kept[lag:] * kept[:-lag]).mean().item()) < 5 * 0.21 / 2**9


def test_the_seed_decides_and_the_global_generator_moves_on() -> None:
    h = torch.ones(3, 5, 7, 2)
    torch.manual_seed(4)
    first, second = dropout(h, 0.5), dropout(h, 0.5)
    torch.manual_seed(4)
    assert torch.equal(dropout(h, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1e-9])
def test_a_rate_of_nothing_drops_nothing(p: float) -> None:
    h = torch.randn(64, 63)
    assert torch.equal(dropout(h, p), h)


def test_a_rate_near_one_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(2**24), 1 - 1e-9)
    assert out.mean().item() == pytest.approx(1, abs=0.4)


def test_the_gradient_is_dropped_and_scaled_alike() -> None:
    h = torch.ones(50, 50, dtype=torch.float64, requires_grad=True)
    out = dropout(h, 0.25)
    (gradient,) = torch.autograd.grad(out.sum(), h)
    assert torch.equal(gradient, out.detach())


def test_the_layout_is_kept_also_of_views_with_gaps() -> None:
    images = torch.randn(2, 8, 5, 3).to(memory_format=torch.channels_last)
    assert dropout(images, 0.5).is_contiguous(memory_format=torch.channels_last)
    half = torch.ones(6, 10)[:, ::2]
    assert dropout(half, 0.5).shape == half.shape
    assert dropout(torch.ones(4, 1).expand(4, 9), 0.5).unique(dim=1).shape[1] > 1
