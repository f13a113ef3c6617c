from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.sources import Custom, Empirical, Gaussian, MatchedGaussian, SparseGaussian


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_is_standard_in_every_direction(dtype):
    n = 20_000
    for generator in (CounterRng(0, 1, n), torch.Generator().manual_seed(1)):
        x = Gaussian().sample((n, 1, 2, 2), generator, dtype=dtype)
        assert x.dtype == dtype
        assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
        covariance = x.flatten(1).T.cov()
        assert (covariance - torch.eye(4)).abs().max() < 5 * (2 / n) ** 0.5


def test_gaussian_with_a_torch_generator_is_randn():
    x = Gaussian().sample((5, 3), torch.Generator().manual_seed(9))
    assert torch.equal(x, torch.randn(5, 3, generator=torch.Generator().manual_seed(9)))


def test_sample_like_takes_shape_and_dtype_but_no_value():
    x1 = torch.full((6, 2, 3), 1e9, dtype=torch.float64)
    x0 = Gaussian().sample_like(x1, CounterRng(0, 0, 6))
    assert x0.shape == x1.shape and x0.dtype == x1.dtype
    assert x0.abs().max() < 6.8
    assert (x1 == 1e9).all()


def test_matched_gaussian_has_the_mean_and_deviation_of_the_data():
    x = torch.tensor([2.0, 0.5]) * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) + 3
    whole = MatchedGaussian.from_data(x, centre=True)
    assert whole.std == pytest.approx(x.double().std(correction=0).item())
    assert whole.mean == pytest.approx(x.double().mean().item())
    assert MatchedGaussian.from_data(x).mean == 0
    each = MatchedGaussian.from_data(x, per_feature=True, centre=True)
    drawn = each.sample((20_000, 2), CounterRng(0, 0, 20_000))
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=5 * 2 / 20_000**0.5)
    torch.testing.assert_close(drawn.std(0), x.std(0), rtol=0.03, atol=0)
    assert MatchedGaussian.from_data(x, per_feature=True).mean == 0


@pytest.mark.parametrize("per_feature", [False, True])
def test_batches_have_the_moments_of_the_whole(per_feature):
    x = 1e6 + torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [x[:0], x[:7], x[7:8], x[8:900], x[900:]]
    found = MatchedGaussian.from_data(iter(parts), per_feature=per_feature, centre=True)
    std, mean = torch.std_mean(x, 0 if per_feature else (0, 1, 2), correction=0)
    torch.testing.assert_close(torch.as_tensor(found.std).double(), std, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.as_tensor(found.mean).double(), mean, rtol=1e-6, atol=0)
    holes = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3, torch.nan, x)
    mean = holes.nanmean(0 if per_feature else (0, 1, 2))
    std = (holes - mean).square().nanmean(0 if per_feature else (0, 1, 2)).sqrt()
    found = MatchedGaussian.from_data(holes.split(64), per_feature=per_feature, centre=True)
    torch.testing.assert_close(torch.as_tensor(found.std).double(), std, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.as_tensor(found.mean).double(), mean, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="needs a value of each element"):
        MatchedGaussian.from_data(torch.full((3, 2), torch.nan), per_feature=per_feature)
    whole_numbers = torch.arange(10).reshape(5, 2)
    assert MatchedGaussian.from_data(whole_numbers).std == pytest.approx(8.25**0.5)


def test_no_source_samples_whole_numbers():
    with pytest.raises(UserError, match=r"a source samples real numbers, not torch\.int64"):
        Gaussian().sample_like(torch.arange(6).reshape(3, 2))


def test_matched_gaussian_is_the_gaussian_moved_and_scaled():
    std, mean = torch.rand(1, 2, 2) + 0.5, torch.randn(1, 2, 2)
    z = Gaussian().sample((5, 1, 2, 2), CounterRng(0, 0, 5))
    x = MatchedGaussian(std, mean).sample((5, 1, 2, 2), CounterRng(0, 0, 5))
    assert torch.equal(x, z * std + mean)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0])])
def test_a_deviation_must_be_above_zero(std):
    with pytest.raises(UserError, match=r"MatchedGaussian\.std must be finite and > 0, got .*constant features"):
        MatchedGaussian(std)


@pytest.mark.parametrize(("std", "mean"), [(torch.ones(3), 0.0), (1.0, torch.zeros(3))])
def test_a_matched_gaussian_fits_only_its_own_shape(std, mean):
    source = MatchedGaussian(std, mean)
    assert source.sample((4, 3)).shape == (4, 3)
    for shape in ((4, 1, 3), (4, 1), (4, 2)):
        with pytest.raises(UserError, match=r"MatchedGaussian\.(std|mean) has shape \(3,\), and a sample"):
            source.sample(shape)


@pytest.mark.parametrize("mean", [math.nan, math.inf])
def test_a_mean_must_be_finite(mean):
    with pytest.raises(UserError, match=r"MatchedGaussian\.mean must be finite"):
        MatchedGaussian(1.0, mean)


@pytest.mark.parametrize("generator", [CounterRng(0, 1, 20_000), torch.Generator().manual_seed(1)])
def test_sparse_gaussian_is_zero_as_often_as_told_and_gaussian_elsewhere(generator):
    x = SparseGaussian(dropout=0.3).sample((20_000, 2), generator)
    zero = x == 0
    assert zero.float().mean(0) == pytest.approx([0.3, 0.3], abs=5 * (0.21 / 20_000) ** 0.5)
    both = (zero[:, 0] & zero[:, 1]).float().mean()
    assert float(both) == pytest.approx(0.09, abs=5 * (0.09 * 0.91 / 20_000) ** 0.5)  # the masks are independent
    assert stats.kstest(x[~zero].numpy(), "norm").pvalue > 1e-3


def test_sparse_gaussian_without_dropout_is_the_gaussian():
    drawn, plain = (source.sample((5, 3), CounterRng(0, 0, 5)) for source in (SparseGaussian(dropout=0), Gaussian()))
    assert torch.equal(drawn, plain)
    for dropout in (-0.1, 1.0, math.nan):
        with pytest.raises(
            UserError,
            match=r"SparseGaussian\.dropout must be (finite and )?at least 0 and below 1, got",
        ):
            SparseGaussian(dropout=dropout)


def test_custom_hands_everything_on_and_checks_the_shape():
    asked = []
    source = Custom(lambda *arguments: asked.append(arguments) or torch.ones(4, 2, dtype=arguments[3]))
    generator = CounterRng(0, 0, 4)
    x = source.sample((4, 2), generator, device=torch.device("cpu"), dtype=torch.float64)
    assert x.dtype == torch.float64
    assert asked == [((4, 2), generator, torch.device("cpu"), torch.float64)]
    with pytest.raises(UserError, match=r"Custom\.draw was asked for shape \(5, 2\) and returned \(4, 2\)"):
        source.sample((5, 2))


def test_empirical_draws_each_row_evenly():
    x = torch.arange(10.0)[:, None].expand(10, 3).clone()
    drawn = Empirical(x).sample((10_000, 3), CounterRng(0, 0, 10_000))
    assert (drawn == drawn[:, :1]).all()  # whole rows
    counts = torch.bincount(drawn[:, 0].long(), minlength=10)
    assert len(counts) == 10 and stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert Empirical(x).sample((2, 3), dtype=torch.float64).dtype == torch.float64


def test_empirical_refuses_what_it_has_not():
    with pytest.raises(UserError, match=r"Empirical\.x has samples of shape \(3,\), asked for \(2,\)"):
        Empirical(torch.ones(5, 3)).sample((4, 2))
    for x in (torch.ones(5), torch.ones(0, 3)):
        with pytest.raises(UserError, match=r"Empirical\.x must have shape \(N, \*S\) with N >= 1, got"):
            Empirical(x)


def test_empirical_draws_rows_of_the_same_kind_where_there_are_any():
    x = torch.arange(6.0)[:, None]
    source = Empirical(x, cond={"type": torch.tensor([0, 0, 1, 1, 1, 2]), "batch": torch.tensor([0, 1, 0, 0, 1, 1])})
    cond = {
        "type": torch.tensor([0, 1, 1, 2, -1]).repeat_interleave(400),
        "batch": torch.tensor([-1, 0, 1, 0, 0]).repeat_interleave(400),  # there is no row (2, 0)
        "dose": torch.zeros(2000, 1),
    }
    drawn = source.sample_matching(cond, (2000, 1), CounterRng(0, 0, 2000)).long().view(5, 400)
    seen = [sorted(set(row.tolist())) for row in drawn]
    assert seen == [[0, 1], [2, 3], [4], [0, 1, 2, 3, 4, 5], [0, 2, 3]]
    assert stats.chisquare(torch.bincount(drawn[3]).numpy()).pvalue > 1e-3
    first = source.sample_matching({k: v[:7] for k, v in cond.items()}, (7, 1), CounterRng(0, 0, 7, total=2000))
    assert torch.equal(first.long().flatten(), drawn[0, :7])


def test_empirical_matches_nothing_where_no_condition_is_shared():
    source = Empirical(torch.arange(4.0)[:, None], cond={"a": torch.arange(4)})
    plain = source.sample((9, 1), CounterRng(0, 0, 9))
    for cond in (None, {}, {"b": torch.zeros(9, dtype=torch.long)}):
        assert torch.equal(source.sample_matching(cond, (9, 1), CounterRng(0, 0, 9)), plain)


def test_empirical_noise_and_storage():
    source = Empirical(torch.zeros(3, 2), cond={"a": torch.arange(3)}, noise=0.5)
    drawn = source.sample((20_000, 2), CounterRng(0, 0, 20_000))
    assert stats.kstest(drawn.flatten().numpy() / 0.5, "norm").pvalue > 1e-3
    assert source.tensors().keys() == {"x", "cond.a"}
    again = Empirical.from_tensors(source.tensors(), noise=0.5)
    assert torch.equal(again.sample((5, 2), CounterRng(0, 0, 5)), source.sample((5, 2), CounterRng(0, 0, 5)))
    for arguments, words in (
        ({"noise": -1}, r"Empirical\.noise must be finite and >= 0, got -1"),
        ({"cond": {"a": torch.zeros(2, dtype=torch.long)}}, r"Empirical\.cond\['a'\] must hold 3 whole numbers"),
    ):
        with pytest.raises(UserError, match=words):
            Empirical(torch.zeros(3, 2), **arguments)
