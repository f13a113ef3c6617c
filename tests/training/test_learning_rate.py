from __future__ import annotations

import math
from itertools import pairwise

import pytest

from advect.core.errors import UserError
from advect.training import ConstantRate, CosineDecay, LearningRate


def test_warm_up_is_a_straight_line_that_starts_above_zero():
    rate = LearningRate(peak=0.4, warmup=4, total=100)
    assert [rate(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert rate(10**9) == 0.4


def test_half_a_cosine_from_the_peak_to_zero():
    rate = LearningRate(peak=2.0, warmup=10, total=50, schedule=CosineDecay())
    assert rate(9) == rate(10) == 2.0
    assert rate(20) == pytest.approx(1 + math.sqrt(0.5))
    assert rate(30) == pytest.approx(1.0)
    assert rate(40) == pytest.approx(1 - math.sqrt(0.5))
    assert rate(50) == rate(60) == pytest.approx(0, abs=1e-15)
    falling = [rate(step) for step in range(10, 51)]
    assert all(a > b for a, b in pairwise(falling))


def test_no_warm_up_starts_at_the_peak():
    for schedule in (ConstantRate(), CosineDecay()):
        assert LearningRate(peak=0.1, warmup=0, total=10, schedule=schedule)(0) == 0.1


@pytest.mark.parametrize("schedule", [ConstantRate(), CosineDecay()])
def test_a_run_shorter_than_its_warm_up_never_stops_rising(schedule):
    rate = LearningRate(peak=1.0, warmup=10, total=5, schedule=schedule)
    assert [rate(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peak": 0.0}, r"LearningRate\.peak must be above 0, got 0\.0"),
        ({"peak": float("nan")}, r"LearningRate\.peak must be finite and above 0, got nan"),
        ({"warmup": -1}, r"LearningRate\.warmup must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UserError, match=message):
        LearningRate(**{"peak": 1.0, "warmup": 1, "total": 10, **arguments})
