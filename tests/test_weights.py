from __future__ import annotations

import itertools
import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import expand_right
from advect.paths import (
    CondOT,
    Cosine,
    LipmanOT,
    Polynomial,
    Trigonometric,
    VariancePreserving,
    convert,
)
from advect.weights import InverseSNR, MinSNR, OneMinusTSquared, TSquared

T = torch.tensor([0.0, 0.25, 0.5, 0.8, 1.0], dtype=torch.float64)
PREDICTIONS = ("data", "noise", "velocity", "score")


def test_powers_of_time():
    assert TSquared()(T).tolist() == pytest.approx([0, 0.0625, 0.25, 0.64, 1])
    assert OneMinusTSquared()(T).tolist() == pytest.approx([1, 0.5625, 0.25, 0.04, 0])


def test_inverse_snr_on_the_straight_line():
    assert InverseSNR(CondOT())(T).tolist() == pytest.approx([1e3, 9, 1, 0.0625, 0], abs=1e-9)
    assert InverseSNR(CondOT(), limit=5.0)(T).tolist() == pytest.approx([5, 5, 1, 0.0625, 0], abs=1e-9)
    tangent = [1 / math.tan(math.pi / 2 * t) ** 2 for t in (0.25, 0.5, 0.8)]
    assert InverseSNR(Trigonometric())(T[1:4]).tolist() == pytest.approx(tangent)


def test_min_snr_on_the_straight_line():
    # SNR = t^2 / (1 - t)^2 = 0, 1/9, 1, 16, infinite, and alpha' sigma - alpha sigma' = 1.
    for prediction in PREDICTIONS:  # as it is, whatever the loss compares
        raw = MinSNR(CondOT(), gamma=5.0, prediction=prediction)(T)
        assert raw.tolist() == pytest.approx([0, 1 / 9, 1, 5, 5], abs=1e-9)
    assert float(MinSNR(CondOT())(torch.tensor(0.9))) == 5
    by = {kind: MinSNR(CondOT(), gamma=5.0, prediction=kind, of="data")(T).tolist() for kind in PREDICTIONS}
    assert by["data"] == pytest.approx([0, 1 / 9, 1, 5, 5], abs=1e-9)
    assert by["noise"] == pytest.approx([1, 1, 1, 5 / 16, 0], abs=1e-9)
    assert by["velocity"] == pytest.approx([0, 0.0625, 0.25, 0.2, 0], abs=1e-9)


def test_inverse_snr_of_the_noise_makes_the_data_even():
    assert InverseSNR(CondOT(), prediction="data")(T).tolist() == pytest.approx([1e-9, 1, 1, 1, 1], abs=1e-8)
    assert InverseSNR(CondOT(), prediction="velocity")(T[1:]).tolist() == pytest.approx(
        [0.5625, 0.25, 0.04, 0], abs=1e-9
    )
    raw = InverseSNR(CondOT(), prediction="velocity", of="loss")(T)
    assert raw.tolist() == pytest.approx([1e3, 9, 1, 0.0625, 0], abs=1e-9)


@pytest.mark.parametrize("schedule", [CondOT(), LipmanOT(), Trigonometric(), Cosine(), Polynomial(2)], ids=repr)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_a_weight_of_the_data_is_one_loss_whatever_is_predicted(schedule, gamma):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    c = schedule.coefficients(t)
    x0, x1, guess = torch.randn(3, 19, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = expand_right(c.alpha, x1) * x1 + expand_right(c.sigma, x0) * x0
    truth, losses = {}, {}
    for kind in PREDICTIONS:
        truth[kind] = convert.convert(x1, x_t, c, "data", kind)
        error = (convert.convert(guess, x_t, c, "data", kind) - truth[kind]).square().mean(1)
        losses[kind] = MinSNR(schedule, gamma=gamma, prediction=kind, of="data")(t) * error
    torch.testing.assert_close(truth["noise"], x0, rtol=1e-9, atol=1e-9)
    expected = (c.alpha / c.sigma).square().clamp(max=gamma) * (guess - x1).square().mean(1)
    for kind in PREDICTIONS:
        torch.testing.assert_close(losses[kind], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        CondOT(),
        LipmanOT(),
        Trigonometric(),
        Cosine(),
        Polynomial(3),
        VariancePreserving(),
        VariancePreserving(lambda t: (1 - t) ** 2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_is_finite_up_to_the_ends(schedule, dtype):
    t = torch.tensor([0.0, 1e-30, 1e-7, 0.5, 1 - 1e-7, 1.0], dtype=dtype)
    every = itertools.product((InverseSNR, MinSNR), PREDICTIONS, ("loss", *PREDICTIONS))
    for weight in (cls(schedule, prediction=prediction, of=of) for cls, prediction, of in every):
        w = weight(t)
        assert w.shape == t.shape and w.dtype == dtype
        assert w.isfinite().all() and (w >= 0).all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_are_checked(value):
    with pytest.raises(
        UserError,
        match=r"InverseSNR\.limit must be (finite and )?above 0 and at most 1,000,000",
    ):
        InverseSNR(CondOT(), limit=value)
    with pytest.raises(UserError, match=r"MinSNR\.gamma must be (finite and )?above 0"):
        MinSNR(CondOT(), gamma=value)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(UserError, match=r"MinSNR\.prediction 'flow' is not known"):
        MinSNR(CondOT(), prediction="flow")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"InverseSNR\.of 'nose' is not known; did you mean 'noise'"):
        InverseSNR(CondOT(), of="nose")  # pyright: ignore[reportArgumentType]
