from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy import stats

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.times import Stratified, Uniform


def generators(n: int):
    return CounterRng(3, 4, n), torch.Generator().manual_seed(3), None


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000])
def test_stratified_has_one_time_in_each_bin(n):
    for generator in generators(n):
        t = Stratified().sample(n, generator).double().sort().values
        k = torch.arange(n, dtype=torch.float64)
        # A time may be rounded to its bin's edge, 2^-24 away.
        assert (t >= k / n - 2**-24).all()
        assert (t <= (k + 1) / n + 2**-24).all()
        assert t[0] >= 0 and t[-1] < 1


@pytest.mark.parametrize("cuts", [(0, 4, 8), (0, 1, 8), (0, 3, 3, 5, 8)])
def test_the_bins_are_those_of_the_batch_that_processes_share(cuts):
    parts = [Stratified().sample(b - a, CounterRng(1, 2, b - a, start=a, total=8)) for a, b in pairwise(cuts)]
    t = torch.cat(parts)
    assert torch.equal(t, Stratified().sample(8, CounterRng(1, 2, 8)))
    assert (t.sort().values * 8).floor().tolist() == list(range(8))


def test_the_last_moment_is_not_rounded_to_one(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda shape, *args, **kwargs: torch.full(shape, 1 - 2**-24))
    for n in (1, 3, 1000, 100_000):
        assert Stratified().sample(n).max() < 1


def test_each_place_of_a_stratified_batch_is_uniform_by_itself():
    n, steps = 8, 3000
    t = torch.stack([Stratified().sample(n, CounterRng(0, step, n)) for step in range(steps)])
    assert stats.kstest(t.flatten().numpy(), "uniform").pvalue > 1e-3
    for place in (0, 3, 7):
        assert stats.kstest(t[:, place].numpy(), "uniform").pvalue > 1e-3
    within = (t * n) % 1  # where in its bin
    assert stats.kstest(within.flatten().numpy(), "uniform").pvalue > 1e-3


def test_stratified_order_does_not_repeat_or_follow_the_batch():
    bins = torch.stack([(Stratified().sample(50, CounterRng(0, step, 50)) * 50).floor() for step in range(200)])
    corr = torch.corrcoef(torch.cat([bins, torch.arange(50.0)[None]]))
    off = corr - torch.eye(201)
    assert off.abs().max() < 5 / 50**0.5


def test_stratified_averages_with_less_variance_than_uniform():
    def variance(times) -> float:
        means = [times.sample(64, CounterRng(0, step, 64)).square().mean() for step in range(300)]
        return float(torch.stack(means).var())

    # Independent: var(t^2) / 64 = 0.0014. In bins the error falls with the third power of their number.
    assert variance(Uniform()) == pytest.approx((1 / 5 - 1 / 9) / 64, rel=0.3)
    assert variance(Stratified()) < variance(Uniform()) / 500


def test_uniform_times_are_independent():
    t = Uniform().sample(50_000, CounterRng(1, 1, 50_000))
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3
    bins = torch.bincount((Uniform().sample(1000, CounterRng(1, 2, 1000)) * 1000).long(), minlength=1000)
    assert abs(int((bins == 0).sum()) - 368) < 50  # 1/e of the bins stay empty


def test_another_number_of_times_than_rows_is_refused():
    for times in (Uniform(), Stratified()):
        with pytest.raises(UserError, match="does not fit a CounterRng of 4 rows"):
            times.sample(5, CounterRng(0, 0, 4))
