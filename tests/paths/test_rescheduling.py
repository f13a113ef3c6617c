from __future__ import annotations

import math

import pytest
import torch
from runge_kutta import rk4

from advect.core.errors import UserError
from advect.paths import (
    AffinePath,
    BetaLinear,
    CondOT,
    Cosine,
    GaussianMixture,
    LipmanOT,
    Polynomial,
    Trigonometric,
    VariancePreserving,
    change_schedule,
    schedule_map,
)

SCHEDULES = [
    CondOT(),
    LipmanOT(1e-3),
    Polynomial(2),
    VariancePreserving(),
    VariancePreserving(lambda t: (1 - t) ** 2),
    Trigonometric(),
    Cosine(),
    BetaLinear(),
]
MEANS = torch.tensor([[2.0, 0], [-1, 1.5], [0, -2]], dtype=torch.float64)


def law(schedule) -> GaussianMixture:
    return GaussianMixture(MEANS, torch.tensor([0.3, 0.5, 0.2]), torch.tensor([1.0, 2, 3]), path=AffinePath(schedule))


@pytest.mark.parametrize("new", SCHEDULES, ids=repr)
@pytest.mark.parametrize("old", SCHEDULES, ids=repr)
def test_the_changed_velocity_is_the_exact_one_of_the_new_schedule(old, new):
    r = torch.linspace(0.1, 0.96, 30, dtype=torch.float64)
    x = law(new).sample(30, r, torch.Generator().manual_seed(0))
    found = change_schedule(law(old).velocity, old, new)(x, r)
    torch.testing.assert_close(found, law(new).velocity(x, r), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("old", SCHEDULES, ids=repr)
def test_the_map_carries_the_coefficients_and_their_slopes(old):
    new, h = Trigonometric(), 1e-6
    r = torch.linspace(0.1, 0.95, 30, dtype=torch.float64)
    here, ahead, behind = (schedule_map(r + d, old, new) for d in (0, h, -h))
    at, target = old.coefficients(here.t), new.coefficients(r)
    torch.testing.assert_close(here.scale * at.alpha, target.alpha, rtol=1e-9, atol=0)
    torch.testing.assert_close(here.scale * at.sigma, target.sigma, rtol=1e-9, atol=0)
    torch.testing.assert_close(here.d_scale, (ahead.scale - behind.scale) / (2 * h), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(here.speed / here.scale, (ahead.t - behind.t) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("new", [Trigonometric(), Polynomial(2), Polynomial(3)], ids=repr)
@pytest.mark.parametrize("old", [CondOT(), Trigonometric()], ids=repr)
def test_the_samples_are_the_same(old, new):
    x0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocity = law(old).velocity
    mine = rk4(velocity, x0, 0, 1, 200)
    other = rk4(change_schedule(velocity, old, new), x0, 0, 1, 200)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    assert (mine - x0).norm(dim=1).mean() > 1  # they have moved


def test_a_diffusion_model_can_be_sampled_on_the_straight_line():
    # Trained on DDPM's schedule, sampled as rectified flow: from the place where DDPM's noise is reached.
    old, new = BetaLinear(), CondOT()
    first = float(new.time_of(*(c.double() for c in old.coefficients(torch.zeros(1))[:2])))
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = schedule_map(torch.tensor([first], dtype=torch.float64), old, new).scale
    mine = rk4(law(old).velocity, x, 0, 0.999, 400)
    last = float(new.time_of(*old.coefficients(torch.tensor([0.999], dtype=torch.float64))[:2]))
    end = schedule_map(torch.tensor([last], dtype=torch.float64), old, new).scale
    other = rk4(change_schedule(law(old).velocity, old, new), scale * x, first, last, 400) / end
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_dtype(shape, dtype):
    x, r = torch.ones(5, *shape, dtype=dtype), torch.linspace(0, 1, 5)

    def velocity(y, t):
        assert y.shape == x.shape and y.dtype == dtype and t.shape == (5,) and t.dtype == r.dtype
        return -y

    u = change_schedule(velocity, CondOT(), Trigonometric())(x, r)
    assert u.shape == x.shape and u.dtype == dtype and u.isfinite().all()


@pytest.mark.parametrize("old", [BetaLinear(), Cosine()], ids=repr)
def test_an_infinitely_fast_end_of_the_old_schedule_is_passed(old):
    # Time t stands still at data, so a network's finite velocity drops out and the scale alone moves x.
    x = torch.tensor([[2.0, -1]], dtype=torch.float64)
    u = change_schedule(lambda y, t: 5 * y, old, CondOT())(x, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(u, x, rtol=1e-12, atol=0)
    beside = change_schedule(law(old).velocity, old, CondOT())(x, torch.full((1,), 1 - 1e-7, dtype=torch.float64))
    torch.testing.assert_close(beside, law(CondOT()).velocity(x, torch.ones(1)), rtol=1e-4, atol=1e-4)


def test_noise_levels_out_of_reach_are_refused_with_the_range():
    velocity = lambda x, t: x
    x, t = torch.zeros(1, 2), torch.zeros(1)
    with pytest.raises(
        UserError, match=r"BetaLinear\(.*\) knows the noise levels of CondOT\(\) only from t = 0\.006529 to 1"
    ):
        change_schedule(velocity, BetaLinear(), CondOT())(x, t)
    with pytest.raises(UserError, match=r"only from t = 0 to 0\.909091; integrate between these"):
        change_schedule(velocity, LipmanOT(0.1), CondOT())(x, t + 0.95)
    assert change_schedule(velocity, LipmanOT(0.1), CondOT())(x, t + 0.9).isfinite().all()


def test_what_cannot_raise_in_compiled_code_is_not_a_number(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, t = torch.ones(2, 2), torch.tensor([0.5, 0.95])
    found = change_schedule(lambda x, t: x, LipmanOT(0.1), CondOT())(x, t)
    assert found[0].isfinite().all() and found[1].isnan().all()
    found = change_schedule(lambda x, t: x, CondOT(), VariancePreserving())(x, torch.tensor([0.5, 0.0]))
    assert found[0].isfinite().all() and found[1].isnan().all()
    for source, target in (("data", "velocity"), ("data", "noise"), ("velocity", "score"), ("noise", "score")):
        found = AffinePath().convert(x, x, torch.tensor([0.5, 1.0]), source, target)
        assert found[0].isfinite().all() and found[1].isnan().all()
    for source, target in (("noise", "data"), ("score", "velocity")):
        found = AffinePath().convert(x, x, torch.tensor([0.5, 0.0]), source, target)
        assert found[0].isfinite().all() and found[1].isnan().all()


def test_mistakes_are_named():
    velocity, x, t = (lambda x, t: x), torch.zeros(1, 2), torch.zeros(1)
    with pytest.raises(
        UserError, match=r"VariancePreserving\(.*\) has no velocity where its derivatives are infinite"
    ):
        change_schedule(velocity, CondOT(), VariancePreserving())(x, t)
    with pytest.raises(UserError, match=r"along Polynomial\(n=2\) says nothing where it stands still"):
        change_schedule(velocity, Polynomial(2), CondOT())(x, t)
    with pytest.raises(UserError, match=r"change_schedule\.new must be a Schedule, such as CondOT\(\), got 'cosine'"):
        change_schedule(velocity, CondOT(), "cosine")
    assert math.isfinite(float(schedule_map(torch.tensor(0.5), CondOT(), Cosine()).scale))
