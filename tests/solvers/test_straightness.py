"""The straightness of flows whose paths are known."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import choices
from advect.paths.analytic import GaussianMixture
from advect.solvers import deviations, get_solver, integrate, straightness

MEAN, SPREAD, TURN = 2.0, 0.5, 1.3
REFUSED = ("adaptive", "affine_only", "two_times", "jumps")
METHODS = sorted(n for n in choices("solver") if not any(getattr(get_solver(n), kind) for kind in REFUSED))


def start(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def rotation(x: Tensor, t: Tensor) -> Tensor:
    """u = w J x, which turns x by the angle w t."""
    return TURN * torch.stack([-x[:, 1], x[:, 0]], 1)


def gaussian_flow(x: Tensor, t: Tensor) -> Tensor:
    """The marginal velocity of the straight path from N(0, I) to N(MEAN, SPREAD^2 I)."""
    t = t.reshape(-1, *(1 for _ in x.shape[1:]))
    slope = (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
    return MEAN + slope * (x - t * MEAN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", METHODS)
def test_straight_lines_at_constant_speed_are_straight(solver: str, dtype: torch.dtype) -> None:
    x0 = start(50, 2, 3, dtype=dtype)
    speed = 100 + x0.flip(0)
    found = straightness(lambda x, t: speed, x0, solver=solver)
    assert found.value == found.relative == 0
    assert found.distance == pytest.approx(speed.square().mean().item(), rel=1e-5)


def test_a_straight_line_at_changing_speed_is_not() -> None:
    # x_t = x0 + t^2: the velocity 2 t has the variance 4/12 around its mean 1
    found = straightness(lambda x, t: 2 * t[:, None] + 0 * x, start(9, 4), solver="midpoint", steps=1000)
    assert found.value == pytest.approx(1 / 3, rel=1e-6) and found.distance == pytest.approx(1)


def test_a_rotation_has_its_closed_form_for_each_sample() -> None:
    # |u|^2 = w^2 |x0|^2 at all times, and |x1 - x0|^2 = (2 - 2 cos w) |x0|^2
    x0 = start(40, 2)
    deviation, distance = deviations(rotation, x0, solver="rk4")
    size, chord = x0.square().mean(1), 2 - 2 * math.cos(TURN)
    torch.testing.assert_close(deviation, (TURN**2 - chord) * size, rtol=1e-8, atol=0)
    torch.testing.assert_close(distance, chord * size, rtol=1e-8, atol=0)
    found = straightness(rotation, x0, solver="rk4")
    assert found.value == pytest.approx(deviation.mean().item())
    assert found.relative == pytest.approx(TURN**2 / chord - 1, rel=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_the_relative_value_has_no_unit(scale: float) -> None:
    found = straightness(rotation, scale * start(40, 2, dtype=torch.float32), solver="midpoint")
    assert found.relative == pytest.approx(TURN**2 / (2 - 2 * math.cos(TURN)) - 1, rel=1e-3)


def test_gaussian_to_gaussian_has_its_closed_form() -> None:
    # x_t = t m + c_t x0 with c_t^2 = t^2 s^2 + (1 - t)^2, so the deviation is (c_t' - (s - 1)) x0, and
    # the integral of c'^2 over [0, 1] is 1 + s^2 - s pi/2, which leaves s (2 - pi/2) E x0^2
    x0 = start(200, 3, 2)
    found = straightness(gaussian_flow, x0, solver="rk4")
    assert found.value == pytest.approx(SPREAD * (2 - math.pi / 2) * x0.square().mean().item(), rel=1e-6)
    assert found.distance == pytest.approx((MEAN + (SPREAD - 1) * x0).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("solver", METHODS)
def test_the_error_falls_with_the_steps_as_the_solvers_order_says(solver: str) -> None:
    x0 = start(30, 2)
    exact = (TURN**2 - 2 + 2 * math.cos(TURN)) * x0.square().mean().item()
    errors = [abs(straightness(rotation, x0, solver=solver, steps=n).value - exact) for n in (20, 40, 80)]
    assert min(math.log2(a / b) for a, b in pairwise(errors)) > get_solver(solver).order - 0.15


def test_euler_says_what_its_own_states_say() -> None:
    law = GaussianMixture(torch.tensor([[1.5, 0.0], [-1.0, 1.0]]), stds=torch.tensor([0.4, 0.6]))
    x0, steps = start(300, 2), 17
    states = integrate(law.velocity, x0, solver="euler", steps=steps, trajectory=True)
    speeds = torch.stack([law.velocity(x, torch.full((300,), k / steps).double()) for k, x in enumerate(states[:-1])])
    expected = (speeds - (states[-1] - x0)).square().mean().item()
    found = straightness(law.velocity, x0, steps=steps)
    assert expected > 0.05
    assert found.value == pytest.approx(expected, rel=1e-5)


def test_over_a_part_of_the_time_and_backwards() -> None:
    x0 = start(30, 2)
    forwards = straightness(rotation, x0, solver="rk4", t0=0.25, t1=0.75)
    chord = (2 - 2 * math.cos(TURN / 2)) * 4  # a mean speed, over half of the time
    assert forwards.value == pytest.approx((TURN**2 - chord) * x0.square().mean().item(), rel=1e-8)
    x1 = integrate(rotation, x0, solver="rk4", t0=0.25, t1=0.75, steps=100)
    back = straightness(rotation, x1, solver="rk4", t0=0.75, t1=0.25)
    assert back.value == pytest.approx(forwards.value, rel=1e-8)


def test_no_state_is_kept() -> None:
    seen, alive = [], []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        alive.append(sum(earlier() is not None for earlier in seen))
        u = -x
        seen.extend([weakref.ref(x), weakref.ref(u)])
        return u

    straightness(velocity, start(100, 50), steps=40)
    assert len(alive) == 41 and max(alive) <= 4


@pytest.mark.parametrize("solver", ["dopri5", "dpmpp2m"])
def test_solvers_that_cannot_are_refused(solver: str) -> None:
    with pytest.raises(UserError, match=f"solver '{solver}' cannot integrate a deviation"):
        straightness(rotation, start(2, 2), solver=solver)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"t0": 1.0}, "t0 and t1 are both"),
        ({"solver": "eular"}, "did you mean 'euler'"),
    ],
)
def test_bad_arguments_are_told(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        straightness(rotation, start(2, 2), **arguments)


def test_a_state_that_is_not_finite_is_told() -> None:
    with pytest.raises(UserError, match=r"not finite from t = 0\.7 on"):
        straightness(lambda x, t: x / (t[:, None] < 0.55), start(2, 2), steps=10)
