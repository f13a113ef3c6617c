"""Questions to a flow whose network is the exact marginal velocity of a Gaussian under what is given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import GIVEN, Conditions, DataSpec
from advect.data.sequences.transform import SequenceTransform
from advect.data.tables.columns import Number
from advect.data.tables.scaling import StandardScaling
from advect.data.transforms import Standardize
from advect.data.whiten import Whiten
from advect.model.flow import Flow
from advect.solvers import Velocity
from advect.sources import MatchedGaussian

COV = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]], dtype=torch.float64)
MEAN, STD = torch.tensor([10.0, -3.0, 0.5], dtype=torch.float64), torch.tensor([2.0, 0.1, 1.0], dtype=torch.float64)
NAN = math.nan


class Exact(nn.Module):
    """u_t(x) on the straight path, of the unknown entries given the known: E[x1 - x0 | x_t]; 1e3 elsewhere."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        given = (cond or {}).get(GIVEN, torch.full_like(x_t, NAN))
        out = torch.full_like(x_t, 1e3)
        for i in range(len(x_t)):
            b = given[i].isnan()
            mean, cov = conditional(given[i].double(), b)
            x, s = x_t[i, b].double(), t[i].double()
            of_x = s**2 * cov + (1 - s) ** 2 * torch.eye(len(cov))
            gain = torch.linalg.solve(of_x, x - s * mean)
            out[i, b] = (mean + (s * cov - (1 - s) * torch.eye(len(cov))) @ gain).float()
        return out


def conditional(given: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the entries b (3,) in standard units, given the others."""
    a = ~b
    if not a.any():
        return torch.zeros(3, dtype=torch.float64), COV
    gain = COV[b][:, a] @ torch.linalg.inv(COV[a][:, a])
    return gain @ given[a], COV[b][:, b] - gain @ COV[a][:, b]


def flow(**options) -> Flow:
    spec = DataSpec((3,), "vector", {})
    return Flow(Exact(), spec, Standardize(MEAN.tolist(), STD.tolist()), **{"masked": True, **options})


def log_density(x: Tensor, b: Tensor) -> Tensor:
    """The exact one of the entries b of x (n, 3), given the others, in data units."""
    z = (x.double() - MEAN) / STD
    found = [torch.distributions.MultivariateNormal(*conditional(row, b)).log_prob(row[b]) for row in z]
    return torch.stack(found) - STD[b].log().sum()


@pytest.mark.parametrize("known", [[1], [0, 2], [2]])
def test_draws_follow_the_conditional_law_and_keep_what_is_known(known):
    given = torch.full((3,), NAN, dtype=torch.float64)
    given[known] = torch.tensor([10.7, -3.123456789, 1.9], dtype=torch.float64)[known]
    x = flow().sample(1500, given=given, steps=20).x
    assert torch.equal(x[:, known], given[known].float().expand(1500, -1))
    b = given.isnan()
    mean, cov = conditional((given - MEAN) / STD, b)
    z = ((x.double() - MEAN) / STD)[:, b]
    torch.testing.assert_close(z.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(torch.cov(z.T).reshape(cov.shape), cov, atol=0.09, rtol=0)


def test_each_row_may_be_asked_something_else():
    given = torch.tensor([[10.0, NAN, NAN], [NAN, -3.0, 0.5], [9.0, NAN, 0.1]])
    x = flow().sample(3, given=given, seed=4).x
    for i in range(3):
        alone = flow().sample(3, given=given[i], seed=4).x[i]
        torch.testing.assert_close(x[i], alone, rtol=1e-5, atol=1e-5)
    shared = flow().sample(3, given=given, seed=4, rows=range(1, 3)).x
    torch.testing.assert_close(shared, x[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", [[0], [1, 2]])
def test_the_conditional_density_is_the_exact_one(asked):
    x = flow().sample(6, seed=1).x
    b = torch.zeros(3, dtype=torch.bool)
    b[asked] = True
    value = flow().log_prob(x, given=~b, steps=40)
    torch.testing.assert_close(value.double(), log_density(x, b), atol=2e-3, rtol=0)


def test_a_joint_density_is_that_of_a_part_and_of_the_rest_given_it():
    x = flow().sample(4, seed=2).x
    rest = flow().log_prob(x, given=torch.tensor([False, True, False]), steps=40)
    part = torch.distributions.Normal(MEAN[1], STD[1]).log_prob(x[:, 1].double())
    torch.testing.assert_close(flow().log_prob(x, steps=40).double(), rest.double() + part, atol=3e-3, rtol=0)


def test_values_that_stand_for_a_mask_must_be_those_of_the_data():
    x = flow().sample(4, seed=2).x
    given = torch.where(torch.tensor([True, False, False]), x, NAN)
    torch.testing.assert_close(
        flow().log_prob(x, given=given), flow().log_prob(x, given=torch.tensor([True, False, False]))
    )
    with pytest.raises(UserError, match="given holds values that x has not"):
        flow().log_prob(x, given=given + 1)


def test_what_is_asked_is_checked():
    whole = torch.tensor([[1.0, NAN, NAN]])
    for given, words in (
        ([1.0, 2.0, 3.0], "asks for nothing"),
        ([math.inf, NAN, 3.0], "infinite"),
        ([1.0, NAN], r"must have shape \(3,\), or \(5, 3\)"),
        (whole.expand(4, 3), r"got \(4, 3\)"),
    ):
        with pytest.raises(UserError, match=words):
            flow().sample(5, given=given)
    with pytest.raises(UserError, match="train with --mask random"):
        flow(masked=False).sample(1, given=whole)
    with pytest.raises(UserError, match="needs a Gaussian source"):
        flow(source=MatchedGaussian(2.0)).log_prob(torch.zeros(1, 3), given=whole)


def test_whitened_columns_cannot_be_given():
    inner = Standardize(MEAN.tolist(), STD.tolist())
    mixed = Flow(Exact(), DataSpec((3,), "vector", {}), Whiten.fit(inner, torch.randn(50, 3)), masked=True)
    with pytest.raises(UserError, match="whitened"):
        mixed.sample(1, given=[1.0, NAN, NAN])


def test_no_field_moves_what_is_known():
    field: Velocity = flow()._field(flow().coordinates, {GIVEN: torch.tensor([[0.3, NAN, NAN]])})
    u = field(torch.ones(1, 3), torch.full((1,), 0.5))
    assert u[0, 0] == 0 and (u[0, 1:] != 0).all()


class Walk(nn.Module):
    """u_t(x) on the straight path to x_1 ~ N(0, 2), of a last step less the known ones'; it must see these less it."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        given = (cond or {})[GIVEN]
        known = given.isfinite()
        assert torch.allclose(torch.where(known, given, 0.0).sum(1), torch.zeros(()), atol=1e-4)
        s = t[:, None, None]
        return (3 * s - 1) / (2 * s**2 + (1 - s) ** 2) * x_t


def test_a_flow_of_samples_relative_to_what_is_known_adds_their_level():
    scaled = Number(name="v", dtype="float64", low=-1e3, high=1e3, scaling=StandardScaling(0.0, 2.0))
    spec, facts = DataSpec((3, 1), "sequence", {}), {"columns": [scaled.to_config()]}
    walk = Flow(Walk(), spec, SequenceTransform([scaled]), masked=True, relative=True, facts=facts)
    given = torch.tensor([[[100.0], [104.0], [NAN]], [[-7.0], [-7.0], [NAN]]], dtype=torch.float64)
    x = walk.sample(2000, given=given.repeat_interleave(1000, 0), steps=30).x.double()
    assert torch.equal(x[:, :2], given.repeat_interleave(1000, 0)[:, :2])
    for part, level in ((x[:1000, 2], 102.0), (x[1000:, 2], -7.0)):
        assert part.mean().item() == pytest.approx(level, abs=0.35)
        assert part.std().item() == pytest.approx(8**0.5, rel=0.08)  # of deviations of 2, twice the variance
    some = x[[0, 1500]]
    law = torch.distributions.Normal(torch.tensor([102.0, -7.0]), 8**0.5)
    torch.testing.assert_close(
        walk.log_prob(some.float(), given=given), law.log_prob(some[:, 2, 0]).float(), atol=2e-3, rtol=0
    )
    with pytest.raises(UserError, match="have no level"):
        walk.sample(2, given=given, trajectory=True)
