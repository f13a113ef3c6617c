from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.registry import choices, get
from advect.solvers import t_grid


@pytest.mark.parametrize("name", choices("grid"))
@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1000])
def test_every_grid_rises_from_0_to_1(name, steps):
    grid = t_grid(steps, name)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()


@pytest.mark.parametrize("name", choices("grid"))
def test_backwards_the_times_are_the_same(name):
    there, back = t_grid(9, name, t0=0.25, t1=0.75), t_grid(9, name, t0=0.75, t1=0.25)
    assert torch.equal(there, back.flip(0))
    torch.testing.assert_close(there, 0.25 + 0.5 * t_grid(9, name))


def test_values():
    assert t_grid(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert t_grid(4, "cosine").tolist() == pytest.approx([0, 0.5 - math.sqrt(0.125), 0.5, 0.5 + math.sqrt(0.125), 1])
    # shift 3: a noise share of 1/2 becomes 3/4
    assert t_grid(2, "shifted").tolist() == pytest.approx([0, 0.25, 1])
    assert t_grid(7, "shifted", shift=1.0).tolist() == pytest.approx(t_grid(7).tolist())


def test_edm_takes_the_noise_levels_of_karras():
    # The levels of Karras et al. 2022, eq. 5, for N = 4: 80, 9.7232, 0.4700, 0.002, and 0 at the end.
    t = t_grid(4, "edm")
    assert ((1 - t) / t)[1:].tolist() == pytest.approx([9.7232, 0.4700, 0.002, 0], rel=1e-3)
    one = t_grid(3, "edm", rho=1.0, sigma_min=1.0, sigma_max=9.0)
    assert ((1 - one) / one)[1:].tolist() == pytest.approx([5, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("edn",), r"grid 'edn' is not known; did you mean 'edm'\?"),
        (("edm", {"rho": 0.0}), "rho must be finite and > 0, got 0.0"),
        (("edm", {"sigma_min": 90.0}), "0 < sigma_min < sigma_max, got 90.0 and 80.0"),
        (("shifted", {"shift": -1.0}), "shift must be finite and > 0, got -1.0"),
        (("cosine", {"shift": 3.0}), "grid 'cosine' does not take shift"),
    ],
)
def test_mistakes(arguments, message):
    name, parameters = (*arguments, {})[:2]
    with pytest.raises(UserError, match=message):
        t_grid(5, name, **parameters)


@pytest.mark.parametrize("name", choices("grid"))
def test_too_few_steps(name):
    with pytest.raises(UserError, match="steps must be at least 1, got 0; 50 is usual"):
        t_grid(0, name)


def test_a_grid_may_be_an_object():
    assert torch.equal(t_grid(5, get("grid", "edm")(rho=3.0)), t_grid(5, "edm", rho=3.0))
