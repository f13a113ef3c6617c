"""What every distribution of times promises."""

from __future__ import annotations

import pytest
import torch
from implementations import implementations

from advect.core.random import CounterRng
from advect.times import Stratified, TimeDistribution, Uniform

TIMES = [Uniform(), Stratified()]


def test_none_is_left_out():
    assert {type(times) for times in TIMES} == implementations(TimeDistribution, "advect.times")


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
            assert not torch.equal(first, other)
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
