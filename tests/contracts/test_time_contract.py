"""What every distribution of times promises."""

from __future__ import annotations

import pytest
import torch
from parts import examples

from advect.core.random import CounterRng
from advect.times import (
    Constant,
    Importance,
    Logistic,
    LogitNormal,
    Shifted,
    Stratified,
    TimeDistribution,
    UShaped,
)


def trained() -> Importance:
    """Importance sampling whose losses are three at the noise and near zero at the data."""
    times = Importance(bins=8, momentum=0.5)
    t = torch.linspace(0, 1, 801)
    times.update(t, 3 * (1 - t).square())
    return times


TIMES = [
    *examples("times").values(),
    Constant(0.25),
    LogitNormal(mean=-2, std=3),
    Logistic(mean=-0.25, scale=0.6),
    Logistic(scale=0.9),
    UShaped(a=80),
    Shifted(LogitNormal(), 0.2),
    Stratified(Shifted(UShaped())),
    trained(),
    Stratified(trained()),
    Shifted(trained(), 2.0),
    Stratified(trained()).within(0.2),
    LogitNormal().within(1e-3),
    Constant(0.0).within(0.05),
]


def is_point(times: TimeDistribution) -> bool:
    """Whether all times are equal."""
    low, high = times.quantile(torch.tensor([0.1, 0.9]))
    return bool(low == high)


SPREAD = [times for times in TIMES if not is_point(times)]


@pytest.mark.parametrize("times", TIMES, ids=repr)
class TestTimes:
    @pytest.mark.parametrize("n", [0, 1, 7, 50_000])
    def test_times_lie_between_noise_and_data(self, times, n):
        for generator in (CounterRng(0, 0, n), torch.Generator().manual_seed(0), None):
            t = times.sample(n, generator)
            assert t.shape == (n,) and t.dtype == torch.float32
            assert ((t >= 0) & (t <= 1)).all()

    def test_the_generator_alone_decides(self, times):
        before = torch.random.get_rng_state()
        for make in (lambda seed: CounterRng(seed, 0, 9), lambda seed: torch.Generator().manual_seed(seed)):
            first, again, other = (times.sample(9, make(seed)) for seed in (1, 1, 2))
            assert torch.equal(first, again)
            assert torch.equal(first, other) == is_point(times)
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize("cut", [0, 1, 6, 17])
    def test_a_shared_batch_joins_to_the_whole(self, times, cut):
        parts = [
            times.sample(n, CounterRng(5, 6, n, start=start, total=17)) for start, n in ((0, cut), (cut, 17 - cut))
        ]
        assert torch.equal(torch.cat(parts), times.sample(17, CounterRng(5, 6, 17)))

    def test_the_device_is_the_one_asked_for(self, times):
        assert times.sample(3, None, torch.device("meta")).device.type == "meta"
        assert times.sample(3, CounterRng(0, 0, 3), torch.device("cpu")).device.type == "cpu"

    def test_times_are_drawn_by_the_quantiles(self, times):
        u = torch.linspace(0, 1 - 2**-24, 1001)
        t = times.quantile(u)
        assert t.shape == u.shape and t.dtype == u.dtype
        assert (t.diff() >= 0).all() and t[0] >= 0 and t[-1] <= 1

    def test_the_mean_loss_is_that_of_the_times_meant(self, times):
        # Only importance sampling weights its losses, and on average by one.
        t = times.sample(40_000, CounterRng(0, 0, 40_000))
        with torch.no_grad():
            weighted = times.importance_weight(t, torch.ones_like(t))
        assert float(weighted.double().mean()) == pytest.approx(1, abs=0.02)

    @pytest.mark.parametrize("t_eps", [0.0, 1e-3, 0.05, 0.2])
    def test_an_interval_is_kept_by_the_law(self, times, t_eps):
        t = times.within(t_eps).sample(20_000, CounterRng(0, 0, 20_000))
        assert t.min() >= t_eps - 1e-7 and t.max() <= 1 - t_eps + 1e-7
        if not is_point(times):  # nothing is heaped up at an end, as clamping would
            assert ((t <= t_eps + 1e-7) | (t >= 1 - t_eps - 1e-7)).double().mean() < 1e-3

    def test_the_state_comes_back(self, times):
        state = times.state_dict()
        times.load_state_dict(state)
        assert times.state_dict() == state
        assert all(isinstance(number, float) for numbers in state.values() for number in numbers)


@pytest.mark.parametrize("times", SPREAD, ids=repr)
class TestDensity:
    def test_quantile_is_the_inverse_of_the_integrated_density(self, times):
        edges = times.quantile(torch.linspace(0.02, 0.98, 25, dtype=torch.float64))
        nodes = torch.linspace(0, 1, 4001, dtype=torch.float64)
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            middle = a + (b - a) * (nodes[:-1] + nodes[1:]) / 2
            share = times.density(middle).mean() * (b - a)
            assert float(share) == pytest.approx(0.04, rel=2e-3)

    def test_it_integrates_to_one(self, times):
        n = 400_000
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        assert float(times.density(t).mean()) == pytest.approx(1, abs=1e-3)

    def test_samples_follow_it(self, times):
        n, m = 20_000, 200_000
        t = times.sample(n, CounterRng(1, 0, n))
        cdf = times.density((torch.arange(m, dtype=torch.float64) + 0.5) / m).cumsum(0) / m
        u = cdf[(t.double() * m).long().clamp(max=m - 1)].sort().values
        distance = (u - torch.arange(n) / n).abs().max()
        assert distance < 1.95 / n**0.5 + 1e-3  # Kolmogorov's 0.1 percent, and the sum's error

    def test_dtype_and_ends(self, times):
        for dtype in (torch.float32, torch.float64):
            p = times.density(torch.tensor([0.0, 0.3, 1.0], dtype=dtype))
            assert p.dtype == dtype and p.isfinite().all() and (p >= 0).all()
