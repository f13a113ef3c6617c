"""What is kept of a set: the moments of all rows, and a random choice of a bounded number of them."""

from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.metrics.statistics import ROWS, SampleStatistics


def parts(x: torch.Tensor, size: int, **more: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    cut = lambda v: v.split(size)
    named = {name: cut(value) for name, value in more.items()}
    return [{"features": p, **{name: v[i] for name, v in named.items()}} for i, p in enumerate(cut(x))]


def test_the_moments_are_those_of_all_rows_and_the_rows_a_bounded_choice_of_them() -> None:
    n = 2 * ROWS + 77
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]) + 7
    found = SampleStatistics.from_parts(parts(x, 999, number=torch.arange(n)), n)
    torch.testing.assert_close(found.moments.mean, x.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.moments.covariance, x.double().T.cov(), rtol=1e-10, atol=1e-12)
    number = found.rows["number"]
    assert found.count == n and len(number) == ROWS and len(number.unique()) == ROWS
    assert torch.equal(found.rows["features"], x[number])  # what belongs together stays together
    # Of a random choice in random order the first thousand are spread evenly, too.
    assert abs(float(number[:1000].double().mean()) / n - 0.5) < 0.04


def test_all_rows_of_a_small_set_are_kept_once() -> None:
    x = torch.randn(50, 2)
    found = SampleStatistics.from_parts(parts(x, 7), 50)
    assert torch.equal(found.rows["features"].sort(0).values, x.sort(0).values)
    assert not torch.equal(found.rows["features"], x)


@pytest.mark.parametrize("n", [50, 512, 1300])
def test_how_rows_are_cut_into_parts_changes_no_bit(n: int) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * 1e3
    one, *others = (SampleStatistics.from_parts(parts(x, size), n) for size in (n, 256, 500, 7))
    for other in others:
        assert torch.equal(one.rows["features"], other.rows["features"])
        assert torch.equal(one.moments.mean, other.moments.mean)
        assert torch.equal(one.moments.scatter, other.moments.scatter)


def test_tensors_lead_back_to_the_same_summary() -> None:
    found = SampleStatistics.from_parts(parts(torch.randn(20, 2), 6, values=torch.rand(20, 4).double()), 20)
    again = SampleStatistics.from_tensors(found.to_tensors())
    assert again.count == 20 and torch.equal(again.moments.scatter, found.moments.scatter)
    assert again.rows.keys() == {"features", "values"} and again.rows["values"].dtype == torch.float64
    assert torch.equal(again.take("values", 3), found.rows["values"][:3])


def test_nan_is_told() -> None:
    x = torch.zeros(9, 2)
    x[4, 1] = torch.nan
    with pytest.raises(UserError, match="samples has NaN or infinite values in 1 of 9 samples"):
        SampleStatistics.from_parts(parts(x, 9), 9)
