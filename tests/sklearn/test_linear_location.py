"""The linear regression before the flow of a posterior."""

import numpy as np
import torch
from torch import distributions as laws

from advect.sklearn.location import LinearLocation
from advect.sklearn.prior_laws import prior_of


def test_columns_against_an_edge_are_left_alone_unless_nearly_all_is_told():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 3))
    y = x + rng.standard_normal((2000, 3)) * [1.0, 1.0, 0.1]
    found = LinearLocation(x, y, np.array([False, True, True]))
    assert found.used.tolist() == [True, False, True]
    predicted = found.predict(x[:5])
    assert np.allclose(predicted[:, [0, 2]], x[:5, [0, 2]], atol=0.15) and (predicted[:, 1] == 0).all()


def test_where_x_is_wide_for_its_rows_nothing_is_regressed():
    rng = np.random.default_rng(0)
    found = LinearLocation(rng.standard_normal((50, 6)), rng.standard_normal((50, 2)), np.zeros(2, bool))
    assert not found.used.any() and (found.predict(np.ones((4, 6))) == 0).all()


def test_priors_know_which_parameters_have_edges():
    tensors = torch.zeros(2), torch.ones(2)
    assert not prior_of(laws.MultivariateNormal(tensors[0], torch.eye(2))).edges.any()
    assert not prior_of(laws.Independent(laws.Normal(*tensors), 1)).edges.any()
    assert prior_of((0.0, 1.0), 2).edges.all()
    assert prior_of(None, 2).edges.tolist() == [False, False]
    assert prior_of((np.array([0.0, -np.inf]), np.full(2, np.inf)), 2).edges.tolist() == [True, False]
    assert prior_of(laws.Dirichlet(torch.ones(3))).edges.tolist() == [True, True]
    both = prior_of([laws.Independent(laws.Normal(*tensors), 1), laws.Gamma(torch.ones(1), torch.ones(1))])
    assert both.edges.tolist() == [False, False, True]
