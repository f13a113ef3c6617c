"""Cells that are counted around an expected expression."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

anndata = pytest.importorskip("anndata")

from advect.core.errors import UserError  # noqa: E402
from advect.core.random import CounterRng  # noqa: E402
from advect.data import Cells, Expression, count_noise  # noqa: E402
from advect.data.cells.write import mean_log, poisson_quantile  # noqa: E402


@pytest.fixture(scope="module")
def data():
    """300 cells of 12 genes; sizes differ by a factor of five."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 2, 12) * rng.uniform(0.5, 2.5, (300, 1))
    return anndata.AnnData(X=rng.poisson(rates).astype(np.float32))


def facts_of(data, **options):
    return json.loads(json.dumps(Cells(data, pca=3, held_out=0, **options).metadata))


def test_the_mean_of_the_logarithm_is_that_of_its_series():
    for mean, step in [(1e-3, 5.0), (0.7, 0.2), (0.7, 40.0), (60.0, 3.0)]:
        k = np.arange(400)
        wanted = (stats.poisson.pmf(k, mean) * np.log1p(step * k)).sum()
        assert mean_log(np.array([mean]), step)[0] == pytest.approx(wanted, rel=1e-6)
    assert mean_log(np.array([1e6]), 2.0)[0] == pytest.approx(np.log1p(2e6), rel=1e-6)


def test_quantiles_are_those_of_scipy():
    rng = np.random.default_rng(1)
    means, chance = rng.gamma(0.3, 50, 20_000), rng.random(20_000)
    means[:100] = 0
    assert np.array_equal(poisson_quantile(chance, means), stats.poisson.ppf(chance, means).clip(min=0))


def test_drawn_cells_have_the_expected_expression_on_average(data):
    facts = facts_of(data)
    x = torch.tensor([0.0, -0.5, 0.05, 0.5, 2.0, 5.0, 7.0, 8.0, 8.5, 0.0, 1.0, 3.0])
    drawn = count_noise(x.expand(20_000, 12), facts, CounterRng(0, 0, 20_000))
    error = drawn.std(0) / 20_000**0.5
    assert ((drawn.mean(0) - x.clamp(min=0)).abs() <= 5 * error + 1e-3 * x.clamp(min=0)).all()
    assert (drawn[:, x <= 0] == 0).all() and 0.9 < float((drawn[:, 2] == 0).double().mean()) < 1


def test_cells_lie_on_the_grid_of_their_size(data):
    facts = facts_of(data)
    drawn = count_noise(torch.rand(50, 12) * 8, facts, CounterRng(3, 0, 50)).double()
    sizes = torch.tensor(facts["library_quantiles"], dtype=torch.float64)
    counts = drawn.expm1()[:, None] * sizes[None, :, None] / 1e4
    assert (counts - counts.round()).abs().amax(2).amin(1).max() < 1e-3


def test_counts_are_whole_and_expectations_are_not(data):
    source = Cells(data, pca=3, held_out=0, space="counts")
    x = source.transform.inverse(source.train.fetch(np.arange(300)).x1)
    assert (x != x.round()).any()
    drawn = count_noise(x, source.metadata, CounterRng(0, 0, 300))
    assert torch.equal(drawn, drawn.round()) and drawn.dtype == x.dtype
    assert drawn.mean() == pytest.approx(float(data.X.mean()), rel=0.15)


@pytest.mark.parametrize("options", [{"log1p": False}, {"normalise": False}, {"normalise": False, "log1p": False}])
def test_other_scales_keep_their_means_too(data, options):
    facts = facts_of(data, **options)
    x = torch.rand(1, 12, generator=torch.Generator().manual_seed(0)) * 3 + 0.5
    drawn = count_noise(x.expand(20_000, 12), facts, CounterRng(0, 0, 20_000))
    error = drawn.std(0) / 20_000**0.5
    assert ((drawn.mean(0) - x[0]).abs() <= 5 * error + 1e-3 * x[0]).all()


def test_a_cell_depends_on_the_seed_and_its_place_alone(data):
    facts, x = facts_of(data), torch.rand(10, 12) * 5
    whole = count_noise(x, facts, CounterRng(4, 0, 10))
    assert torch.equal(whole, count_noise(x, facts, CounterRng(4, 0, 10)))
    assert torch.equal(whole[6:], count_noise(x[6:], facts, CounterRng(4, 0, 4, start=6, total=10)))
    assert not torch.equal(whole, count_noise(x, facts, CounterRng(5, 0, 10)))


def test_only_components_of_counts_are_counted(data):
    for facts in (
        Cells(data, held_out=0).metadata,
        Cells(anndata.AnnData(data.X / 3), pca=3, held_out=0, normalise=False, log1p=False).metadata,
    ):
        with pytest.raises(UserError, match="needs a flow of components of counts"):
            count_noise(torch.rand(2, 12), facts)


def test_zeros_come_back_as_zeros_from_genes(data):
    source = Cells(data, held_out=0)
    real = Cells(data, held_out=0, standardise=False).train.fetch(np.arange(300)).x1
    back = source.transform.inverse(source.train.fetch(np.arange(300)).x1)
    assert torch.equal(back == 0, real == 0) and torch.allclose(back, real, atol=1e-5)
    scale = Expression(smallest=0.4)
    assert scale.inverse(torch.tensor([[-1.0, 0.19, 0.21, 3.0]])).tolist() == [[0, 0, pytest.approx(0.21), 3]]
