from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.registry import get
from advect.solvers import t_grid


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
        (("edm", {"rho": 0.0}), "rho must be at least 0.1 and at most 1,000, got 0.0"),
        (("edm", {"sigma_min": 90.0}), "0 < sigma_min < sigma_max, got 90.0 and 80.0"),
        (("shifted", {"shift": -1.0}), "shift must be above 0 and at most 1,000, got -1.0"),
        (("cosine", {"shift": 3.0}), "grid 'cosine' does not take shift"),
    ],
)
def test_mistakes(arguments, message):
    name, parameters = (*arguments, {})[:2]
    with pytest.raises(UserError, match=message):
        t_grid(5, name, **parameters)


def test_a_grid_may_be_an_object():
    assert torch.equal(t_grid(5, get("grid", "edm")(rho=3.0)), t_grid(5, "edm", rho=3.0))
