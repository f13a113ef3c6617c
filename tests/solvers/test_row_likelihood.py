"""Densities to a tolerance against closed forms."""

from __future__ import annotations

import math

import numpy as np
import plane_mixture as mixture
import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.networks import MLP
from advect.solvers import integrate, log_prob
from advect.solvers.row_likelihood import _error, _last_coefficients, _shares, _weights, log_prob_within
from advect.solvers.row_steps import RowPaths


def moving(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    return mixture.velocity(x.double(), t.double()).to(x.dtype)


def points(count: int = 200) -> Tensor:
    far = torch.tensor([[0.0, 0.0], [2.5, -2.0], [9.0, -9.0]], dtype=torch.float64)
    return torch.cat([mixture.sample(count, 1.0, seed=0), far])


def truth(x: Tensor) -> Tensor:
    return mixture.log_density(x, torch.ones(len(x), dtype=torch.float64))


def normal_velocity(x: Tensor, t: Tensor) -> Tensor:
    """Carries N(0, I) to N(2, 1/4 I)."""
    t = t.reshape(-1, *(1 for _ in x.shape[1:]))
    return 2 + (t / 4 - (1 - t)) / (t**2 / 4 + (1 - t) ** 2) * (x - 2 * t)


def network(dim: int) -> MLP:
    torch.manual_seed(0)
    net = MLP(dim, width=32).double()
    with torch.no_grad():
        net.last.weight.mul_(3)
    return net


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-5, 1e-8])
def test_the_density_of_a_mixture_within_the_tolerance(tolerance: float) -> None:
    x = points()
    error = (log_prob_within(moving, x, tolerance) - truth(x)).abs()
    assert (error < tolerance).double().mean() > 0.98 and error.max() < 2 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_all_data_to_the_last_digits_of_the_density(dtype: torch.dtype) -> None:
    x = torch.tensor([[40.0, 3.0], [-1e3, 1e3], [3e5, 0.0]], dtype=dtype)
    exact = truth(x.double())
    found = log_prob_within(moving, x).double()
    assert ((found - exact) / exact).abs().max() < (1e-5 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("shape", [(5, 1), (4, 3), (3, 2, 3, 2), (1, 40)])
def test_the_density_of_a_gaussian_of_any_shape(shape: tuple[int, ...]) -> None:
    x = 2 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.distributions.Normal(torch.tensor(2.0).double(), 0.5).log_prob(x).flatten(1).sum(1)
    found = log_prob_within(lambda x, t, rows: normal_velocity(x, t), x, 1e-4, chunk=7)
    assert found.shape == shape[:1]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    single = log_prob_within(lambda x, t, rows: normal_velocity(x, t), x.float(), 1e-3)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-3)


def test_no_rows_have_no_densities() -> None:
    assert log_prob_within(moving, torch.zeros(0, 2, dtype=torch.float64)).shape == (0,)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_a_network_to_what_many_steps_give(dim: int) -> None:
    net, x = network(dim), torch.randn(60, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    many = log_prob(net, x, solver="rk4", steps=200, nodes=200)
    for tolerance in (1e-2, 1e-3, 1e-5):
        found = log_prob_within(lambda x, t, rows: net(x, t), x, tolerance)
        assert (found - many).abs().max() < tolerance


def test_a_row_depends_on_itself_alone() -> None:
    x = points(40)
    whole = log_prob_within(moving, x)
    torch.testing.assert_close(
        torch.cat([log_prob_within(moving, row[None]) for row in x]), whole, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(log_prob_within(moving, x.flip(0)).flip(0), whole, rtol=1e-10, atol=1e-10)


def test_the_velocity_is_told_which_rows_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.linspace(-5, 5, 30, dtype=torch.float64)[:, None]
    roughness = torch.where(torch.arange(30) % 3 == 0, 40.0, 1.0).double()[:, None]

    def velocity(y: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return shift[rows] + 0.01 * torch.sin(roughness[rows] * (y + t[:, None]))

    whole = log_prob_within(velocity, x)
    one = [log_prob_within(lambda y, t, rows, i=i: velocity(y, t, rows + i), x[i : i + 1]) for i in range(30)]
    torch.testing.assert_close(torch.cat(one), whole, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("advect.solvers.row_likelihood._STORED", 100 * 2 * 7)  # blocks of seven rows
    torch.testing.assert_close(log_prob_within(velocity, x), whole, rtol=1e-9, atol=1e-9)


def test_fewer_evaluations_for_a_larger_tolerance() -> None:
    x, taken = points(50), {}
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        rows: list[int] = []
        log_prob_within(lambda x, t, _, rows=rows: (rows.append(len(x)), mixture.velocity(x, t))[1], x, tolerance)
        taken[tolerance] = sum(rows)
    assert sorted(taken.values()) == list(taken.values()) and taken[1e-4] > 1.5 * taken[1e-1]


# --- Paths. ---


def test_states_between_are_those_of_the_solution() -> None:
    x, shares = points(30), torch.tensor([0.03, 0.5, 0.91], dtype=torch.float64)
    paths = RowPaths(moving, x, 1.0, 0.0, 1e-6)
    some = torch.tensor([3, 0, 17])
    for share, state in zip(shares.tolist(), paths.states(shares, some), strict=True):
        exact = integrate(mixture.velocity, x, solver="rk4", steps=400, t0=1.0, t1=1 - share)[some]
        torch.testing.assert_close(state, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        paths.end, integrate(mixture.velocity, x, solver="rk4", steps=400, t0=1.0, t1=0.0), rtol=0, atol=1e-5
    )
    assert len(paths.evaluations.unique()) > 1  # steps are their own


def test_times_of_a_row_are_within_the_span_and_reach_its_end() -> None:
    seen = []
    RowPaths(lambda x, t, rows: (seen.append(t.clone()), -x)[1], torch.ones(3, 2, dtype=torch.float64), 0.9, 0.2, 1e-6)
    times = torch.cat(seen)
    assert times.max() == 0.9 and times.min() == pytest.approx(0.2, abs=1e-12) and (times >= 0.2 - 1e-12).all()


# --- Quadrature. ---


@pytest.mark.parametrize("count", [24, 48, 96])
def test_the_weights_integrate_polynomials_and_the_last_coefficients_are_chebyshevs(count: int) -> None:
    x = _shares(count)
    for k in (0, 1, 5, count):
        assert _weights(count) @ x**k == pytest.approx(1 / (k + 1), abs=1e-12)
    polynomial = np.polynomial.chebyshev.chebval(1 - 2 * x, np.arange(count + 1.0))
    before, last = (part @ polynomial for part in _last_coefficients(count))
    np.testing.assert_allclose(last, np.arange(count + 1.0)[-(count // 4) :], rtol=1e-9)
    np.testing.assert_allclose(before, np.arange(count // 4 + 1.0, count // 2 + 1), rtol=1e-9)


def test_estimated_errors_are_above_those_of_rough_integrands() -> None:
    a = torch.linspace(2, 60, 400, dtype=torch.float64)
    for count in (24, 48):
        t = torch.from_numpy(_shares(count))[:, None]
        values = 1 / (1 + ((t - 0.37) * a).square())  # poles at a distance of 1 / a
        exact = (torch.atan(0.63 * a) + torch.atan(0.37 * a)) / a
        error = (torch.from_numpy(_weights(count)) @ values - exact).abs()
        assert (error <= _error(values)).double().mean() > 0.8
        assert (error <= 1.3 * _error(values)).all()


# --- Mistakes. ---


@pytest.mark.parametrize("tolerance", [0.0, 1e-9, 2.0, math.nan, -1.0])
def test_a_tolerance_out_of_range(tolerance: float) -> None:
    with pytest.raises(UserError, match=r"tolerance must be from 1e-08 to 1 in float64, got"):
        log_prob_within(moving, points(2), tolerance)
    with pytest.raises(UserError, match=r"tolerance must be from 0.0001 to 1 in float32, got"):
        log_prob_within(moving, points(2).float(), min(tolerance, 1e-5))


def test_a_velocity_that_breaks_is_found_where_it_does() -> None:
    broken = lambda x, t, rows: torch.where(t[:, None] < 0.5, torch.nan, x)
    with pytest.raises(UserError, match=r"not finite from t = 0\.5"):
        log_prob_within(broken, points(4))
    with pytest.raises(UserError, match="not finite"):
        log_prob_within(moving, torch.tensor([[math.nan, 0.0], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("count", [24, 96, 768])
def test_estimated_errors_of_jumps_do_not_fall_behind(count: int) -> None:
    t = torch.from_numpy(_shares(count))[:, None]
    at = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.8 + 0.1
    error = (torch.from_numpy(_weights(count)) @ (t > at).double() - (1 - at)).abs()
    assert (error <= 2 * _error((t > at).double())).double().mean() > 0.95
    assert (error <= 6 * _error((t > at).double())).all()


def jump(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    return torch.where(t[:, None] > 0.4713, x, -x)


@pytest.mark.parametrize("tolerance", [0.1, 1e-2, 1e-3])
def test_a_jump_of_the_velocity_ends_right_or_is_said(tolerance: float) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    growth = 0.5287 - 0.4713
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x[:, 0] * math.exp(-growth)) - growth
    try:
        assert (log_prob_within(jump, x, tolerance) - exact).abs().max() < 2 * tolerance
    except UserError as error:
        assert "raise tolerance, or give steps" in str(error) and tolerance < 0.1


def test_a_velocity_too_rough_for_the_tolerance_is_said() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    with pytest.raises(UserError, match=r"raise (tolerance|it), or give steps"):
        log_prob_within(jump, x, 1e-7)
    busy = lambda x, t, rows: x * torch.sin(6e3 * t)[:, None] * 100
    with pytest.raises(UserError, match=r"does not come past t = .*; raise it, or give steps"):
        log_prob_within(busy, x, 1e-6)
