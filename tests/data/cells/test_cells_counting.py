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
from advect.data import Cells, Expression, count_noise, transform_from_config  # noqa: E402
from advect.data.cells.counts import CountComponents, negative_binomial  # noqa: E402

KINDS = 3


@pytest.fixture(scope="module")
def data():
    """1,500 cells of 20 genes and 3 kinds: overdispersed, half of them zero; kinds differ in size."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, KINDS, 1500)
    shares = rng.dirichlet(np.full(20, 0.7), KINDS)[kind]
    sizes = np.array([40, 80, 160])[kind] * rng.uniform(0.7, 1.4, 1500)
    mean = shares * sizes[:, None]
    counts = rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape)).astype(np.float32)
    return anndata.AnnData(X=counts, obs={"kind": kind.astype(str)})


@pytest.fixture(scope="module")
def source(data):
    return Cells(data, pca=4, held_out=0)


def everything(source):
    return source.train.fetch(np.arange(len(source.train))).x1


def test_quantiles_are_those_of_scipy():
    rng = np.random.default_rng(1)
    means, chance, dispersion = rng.gamma(0.3, 50, (2000, 10)), rng.random((2000, 10)), rng.gamma(1, 2, 10)
    means[:100] = 0
    wanted = stats.nbinom.ppf(chance, dispersion, dispersion / (dispersion + means)).clip(min=0)
    assert np.array_equal(negative_binomial(chance, means, dispersion), wanted)


def test_cells_put_through_components_keep_zeros_means_variances_and_sizes(data, source):
    z = everything(source).repeat(8, 1)
    drawn = count_noise(source.transform.inverse(z), source.transform, CounterRng(0, 0, len(z))).double()
    real = torch.from_numpy(np.log1p(data.X * (1e4 / data.X.sum(1, keepdims=True)))).double()
    zeros = [(x == 0).double().mean(0) for x in (drawn, real)]
    assert float((zeros[0] - zeros[1]).abs().mean()) < 0.03 and 0.3 < float(zeros[1].mean()) < 0.7
    varied = real.std(0) > 0.5
    assert float((drawn.mean(0) - real.mean(0)).abs()[varied].mean()) < 0.15
    assert ((drawn.std(0) / real.std(0))[varied] - 1).abs().mean() < 0.1
    counts = drawn.expm1()
    sizes = 1e4 / counts.where(counts > 0, torch.inf).amin(1)  # most cells have a gene of one count
    kind = data.obs["kind"].to_numpy()
    by_kind = [np.median(sizes.numpy().reshape(8, -1)[:, kind == str(k)]) for k in range(KINDS)]
    real_sizes = [np.median(data.X.sum(1)[kind == str(k)]) for k in range(KINDS)]
    np.testing.assert_allclose(by_kind, real_sizes, rtol=0.25)


def test_the_regression_finds_a_known_law():
    """Of negative binomials of log mean ``b + w z``, dispersion 2, the weights and the dispersion."""
    from advect.data.cells.counts import _regression
    from advect.data.cells.matrix import as_rows

    rng = np.random.default_rng(2)
    z, w = rng.normal(size=(6000, 2)), rng.normal(0, 0.5, (8, 2))
    mean = np.exp(z @ w.T + 0.3) * 3
    counts = rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape)).astype(np.float32)
    cells, sizes = np.arange(6000), np.full(6000, 3.0)
    start = torch.from_numpy(np.log(counts.mean(0) / 3)).float()
    weights, bias, dispersion = _regression(torch.from_numpy(z).float(), start, as_rows(counts), sizes, cells, 0)
    np.testing.assert_allclose(weights, w, atol=0.08)
    np.testing.assert_allclose(bias, np.full(8, 0.3), atol=0.1)
    np.testing.assert_allclose(dispersion, np.full(8, 2.0), rtol=0.25)


def test_counts_are_whole_and_expectations_are_not(data):
    source = Cells(data, pca=4, held_out=0, space="counts")
    x = source.transform.inverse(everything(source))
    assert (x != x.round()).any()
    drawn = count_noise(x, source.transform, CounterRng(0, 0, len(x)))
    assert torch.equal(drawn, drawn.round()) and drawn.dtype == x.dtype
    assert float((drawn == 0).double().mean()) == pytest.approx(float((data.X == 0).mean()), abs=0.05)


def test_counts_that_are_not_normalised_keep_their_zeros_and_means(data):
    source = Cells(data, pca=4, held_out=0, normalise=False)
    x = source.transform.inverse(everything(source))
    drawn = count_noise(x, source.transform, CounterRng(0, 0, len(x))).double()
    real = source.train.expression(np.arange(len(source.train))).double()
    assert float((drawn == 0).double().mean()) == pytest.approx(float((real == 0).double().mean()), abs=0.05)
    assert float(drawn.mean()) == pytest.approx(float(real.mean()), rel=0.1)


def test_a_cell_depends_on_the_seed_and_its_place_alone(source):
    x, transform = source.transform.inverse(everything(source)[:10]), source.transform
    whole = count_noise(x, transform, CounterRng(4, 0, 10))
    assert torch.equal(whole, count_noise(x, transform, CounterRng(4, 0, 10)))
    assert torch.equal(whole[6:], count_noise(x[6:], transform, CounterRng(4, 0, 4, start=6, total=10)))
    assert not torch.equal(whole, count_noise(x, transform, CounterRng(5, 0, 10)))


def test_the_law_of_counts_is_stored(source):
    config = json.loads(json.dumps(source.transform.to_config()))
    again = transform_from_config(config, source.transform.tensors())
    assert again == source.transform
    z = everything(source)[:20] * 3
    assert torch.equal(again.inverse(z), source.transform.inverse(z)) and bool(again.inverse(z).isfinite().all())
    with pytest.raises(UserError, match="have no density per gene"):
        again.log_det(4)
    parts = source.transform.parts[1].tensors()
    with pytest.raises(UserError, match=r"bias must have shape \(20,\)"):
        CountComponents(**{**parts, "bias": parts["bias"][:3]})


def test_only_components_of_counts_are_counted(data):
    for source in (
        Cells(data, held_out=0),
        Cells(data, pca=4, held_out=0, log1p=False),
        Cells(anndata.AnnData(data.X / 3), pca=3, held_out=0, normalise=False, log1p=False),
    ):
        with pytest.raises(UserError, match="needs a flow of components of counts"):
            count_noise(torch.rand(2, 20), source.transform)


def test_zeros_come_back_as_zeros_from_genes(data):
    source = Cells(data, held_out=0)
    real = Cells(data, held_out=0, standardise=False).train.fetch(np.arange(300)).x1
    back = source.transform.inverse(source.train.fetch(np.arange(300)).x1)
    assert torch.equal(back == 0, real == 0) and torch.allclose(back, real, atol=1e-5)
    scale = Expression(smallest=0.4)
    assert scale.inverse(torch.tensor([[-1.0, 0.19, 0.21, 3.0]])).tolist() == [[0, 0, pytest.approx(0.21), 3]]
