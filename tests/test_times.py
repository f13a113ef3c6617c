from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.times import Constant, Importance, Logistic, LogitNormal, Shifted, Stratified, Uniform, UShaped


def generators(n: int):
    return CounterRng(3, 4, n), torch.Generator().manual_seed(3), None


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000])
def test_stratified_has_one_time_in_each_bin(n):
    for generator in generators(n):
        t = Stratified().sample(n, generator).double().sort().values
        k = torch.arange(n, dtype=torch.float64)
        # A time may be rounded to its bin's edge, 2^-24 away.
        assert (t >= k / n - 2**-24).all()
        assert (t <= (k + 1) / n + 2**-24).all()
        assert t[0] >= 0 and t[-1] < 1


@pytest.mark.parametrize("cuts", [(0, 4, 8), (0, 1, 8), (0, 3, 3, 5, 8)])
def test_the_bins_are_those_of_the_batch_that_processes_share(cuts):
    parts = [Stratified().sample(b - a, CounterRng(1, 2, b - a, start=a, total=8)) for a, b in pairwise(cuts)]
    t = torch.cat(parts)
    assert torch.equal(t, Stratified().sample(8, CounterRng(1, 2, 8)))
    assert (t.sort().values * 8).floor().tolist() == list(range(8))


def test_the_last_moment_is_not_rounded_to_one(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda shape, *args, **kwargs: torch.full(shape, 1 - 2**-24))
    for n in (1, 3, 1000, 100_000):
        assert Stratified().sample(n).max() < 1


def test_each_place_of_a_stratified_batch_is_uniform_by_itself():
    n, steps = 8, 3000
    t = torch.stack([Stratified().sample(n, CounterRng(0, step, n)) for step in range(steps)])
    assert stats.kstest(t.flatten().numpy(), "uniform").pvalue > 1e-3
    for place in (0, 3, 7):
        assert stats.kstest(t[:, place].numpy(), "uniform").pvalue > 1e-3
    within = (t * n) % 1  # where in its bin
    assert stats.kstest(within.flatten().numpy(), "uniform").pvalue > 1e-3


def test_stratified_order_does_not_repeat_or_follow_the_batch():
    bins = torch.stack([(Stratified().sample(50, CounterRng(0, step, 50)) * 50).floor() for step in range(200)])
    corr = torch.corrcoef(torch.cat([bins, torch.arange(50.0)[None]]))
    off = corr - torch.eye(201)
    assert off.abs().max() < 5 / 50**0.5


def test_stratified_averages_with_less_variance_than_uniform():
    def variance(times) -> float:
        means = [times.sample(64, CounterRng(0, step, 64)).square().mean() for step in range(300)]
        return float(torch.stack(means).var())

    # Independent: var(t^2) / 64 = 0.0014. In bins the error falls with the third power of their number.
    assert variance(Uniform()) == pytest.approx((1 / 5 - 1 / 9) / 64, rel=0.3)
    assert variance(Stratified()) < variance(Uniform()) / 500


def test_uniform_times_are_independent():
    t = Uniform().sample(50_000, CounterRng(1, 1, 50_000))
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3
    bins = torch.bincount((Uniform().sample(1000, CounterRng(1, 2, 1000)) * 1000).long(), minlength=1000)
    assert abs(int((bins == 0).sum()) - 368) < 50  # 1/e of the bins stay empty


def test_another_number_of_times_than_rows_is_refused():
    for times in (Uniform(), Stratified()):
        with pytest.raises(UserError, match="does not fit a CounterRng of 4 rows"):
            times.sample(5, CounterRng(0, 0, 4))


@pytest.mark.parametrize("base", [LogitNormal(), UShaped(), Shifted(shift=4.0), Importance(bins=4)], ids=repr)
def test_any_base_can_be_stratified(base):
    n = 64
    t = Stratified(base).sample(n, CounterRng(0, 0, n)).double()
    edges = base.quantile(torch.arange(n + 1, dtype=torch.float64).div(n).clamp(max=1 - 1e-12))
    assert (torch.searchsorted(edges, t.sort().values, right=True) - 1).tolist() == list(range(n))
    assert not torch.equal(t, t.sort().values)


def test_logit_normal_closed_forms():
    for mean, std in ((0.0, 1.0), (-1.2, 0.7)):
        times = LogitNormal(mean=mean, std=std)
        t = times.quantile(torch.tensor([0.5, 0.9, 0.1], dtype=torch.float64))
        logit = [mean + std * z for z in stats.norm.ppf([0.5, 0.9, 0.1])]
        assert t.tolist() == pytest.approx([1 / (1 + math.exp(-z)) for z in logit], rel=1e-12)
        drawn = times.sample(20_000, CounterRng(0, 0, 20_000))
        assert stats.kstest(drawn.double().logit().numpy(), "norm", (mean, std)).pvalue > 1e-3
    # At the middle, eq. 19 of Esser et al. 2024 is 4 / sqrt(2 pi).
    assert float(LogitNormal().density(torch.tensor(0.5))) == pytest.approx(4 / math.sqrt(2 * math.pi))


def test_u_shape_closed_forms():
    a, t = 4.0, torch.linspace(0, 1, 101, dtype=torch.float64)
    p = UShaped(a=a).density(t)
    mixture = (torch.exp(a * t) + torch.exp(a * (1 - t))) * a / (2 * (math.exp(a) - 1))
    torch.testing.assert_close(p, mixture, rtol=1e-12, atol=0)
    torch.testing.assert_close(p, p.flip(0), rtol=1e-12, atol=0)
    share = 0.5 + math.sinh(a * 0.25) / (2 * math.sinh(a / 2))  # of the times below 3/4
    assert float(UShaped(a=a).quantile(torch.tensor(share, dtype=torch.float64))) == pytest.approx(0.75)
    torch.testing.assert_close(UShaped(a=1e-6).density(t), torch.ones_like(t))


def test_shift_closed_forms():
    u = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    assert torch.equal(Shifted(shift=1.0).quantile(u), u)
    # Esser et al. 2024, eq. 23, in their time 1 - t: shift t' / (1 + (shift - 1) t').
    torch.testing.assert_close(1 - Shifted(shift=3.0).quantile(u), 3 * (1 - u) / (1 + 2 * (1 - u)))
    torch.testing.assert_close(Shifted(Shifted(shift=2.0), 0.5).quantile(u), u)
    # A shift of logits is a shift of the mean.
    torch.testing.assert_close(
        Shifted(LogitNormal(), 3.0).quantile(u), LogitNormal(mean=-math.log(3)).quantile(u), rtol=1e-9, atol=1e-12
    )
    assert Shifted(shift=3.0).sample(4000, CounterRng(0, 0, 4000)).median() < 0.3


def test_constant_is_constant():
    assert (Constant(0.3).sample(5) == torch.tensor(0.3)).all()
    assert Constant(0.25).density(torch.tensor([0.25, 0.3])).tolist() == [math.inf, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(1.5), r"Constant\.t must be at least 0 and at most 1, got 1\.5"),
        (lambda: LogitNormal(std=0.0), r"LogitNormal\.std must be above 0 and at most 100, got 0\.0; 1\.0 is usual"),
        (lambda: UShaped(a=0.0), r"UShaped\.a must be above 0 and at most 80, got 0\.0; 4\.0 is usual"),
        (lambda: Shifted(shift=-1.0), r"Shifted\.shift must be above 0 and at most 1,000, got -1\.0"),
        (lambda: Importance(bins=1), r"Importance\.bins must be at least 2 and at most 65,536, got 1; 32 is usual"),
        (
            lambda: Importance(momentum=1.0),
            r"Importance\.momentum must be at least 0 and below 1, got 1\.0; ",
        ),
        (lambda: Importance(floor=0.0), r"Importance\.floor must be above 0 and at most 1, got 0\.0; 0\.2 is usual"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(UserError, match=message):
        make()


def loss_at(t: torch.Tensor) -> torch.Tensor:
    """A loss that is large at the noise; its mean over uniform times is 1/2."""
    return 0.1 + 2 * (1 - t) ** 4


@pytest.mark.parametrize("wrap", [lambda times: times, Stratified], ids=["plain", "stratified"])
def test_importance_sampling_leaves_the_expected_loss_as_it_was(wrap):
    importance = Importance(bins=16, momentum=0.5, floor=0.1)
    times, n = wrap(importance), 500
    found = []
    for step in range(400):  # its probabilities move all the while
        t = times.sample(n, CounterRng(0, step, n))
        found.append(times.importance_weight(t, loss_at(t)).double().mean())
    mean, error = torch.stack(found).mean(), torch.stack(found).std() / 400**0.5
    assert float(mean) == pytest.approx(0.5, abs=5 * float(error) + 1e-5)
    assert error < 2e-3
    assert importance.probabilities()[0] > 5 * importance.probabilities()[-1]


def test_shifted_importance_means_the_shifted_times():
    times = Shifted(Importance(bins=16, momentum=0.5), 3.0)
    found = []
    for step in range(400):
        t = times.sample(500, CounterRng(0, step, 500))
        found.append(times.importance_weight(t, loss_at(t)).double().mean())
    t = Shifted(shift=3.0).quantile((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    error = float(torch.stack(found).std()) / 400**0.5
    assert float(torch.stack(found).mean()) == pytest.approx(float(loss_at(t).mean()), abs=5 * error)
    assert times.state_dict()["loss"][0] > times.state_dict()["loss"][-1]


def test_importance_sampling_has_less_variance_than_uniform_times():
    times, n = Importance(bins=32, momentum=0.0, floor=0.05), 20_000
    t = Uniform().sample(n, CounterRng(0, 0, n))
    times.update(t, loss_at(t))
    s = times.sample(n, CounterRng(0, 1, n))
    with torch.no_grad():
        assert times.importance_weight(s, loss_at(s)).var() < loss_at(t).var() / 20


def test_bins_are_drawn_as_their_losses_are():
    times = Importance(bins=4, momentum=0.0, floor=0.2)
    assert times.probabilities().tolist() == pytest.approx([0.25] * 4)
    times.update(torch.tensor([0.1, 0.2, 0.3, 0.6, 0.99]), torch.tensor([1.0, 3.0, 4.0, 0.0, 2.0]))
    # Means 2, 4, 0, 2, of which 0.8, and 0.2 evenly.
    assert times.probabilities().tolist() == pytest.approx([0.25, 0.45, 0.05, 0.25])
    t = times.sample(40_000, CounterRng(0, 0, 40_000))
    counts = torch.bincount((t * 4).long(), minlength=4)
    assert stats.chisquare(counts.numpy(), [10_000, 18_000, 2_000, 10_000]).pvalue > 1e-3
    for k in range(4):
        assert stats.kstest((t[(t * 4).long() == k] * 4 - k).numpy(), "uniform").pvalue > 1e-3


def test_means_move_by_momentum_and_only_where_there_were_times():
    times = Importance(bins=2, momentum=0.9)
    times.update(torch.tensor([0.1, 0.4]), torch.tensor([2.0, 4.0]))
    assert times.state_dict()["loss"] == pytest.approx([0.9 * 1 + 0.1 * 3, 1.0])
    times.update(torch.tensor([1.0, 0.2]), torch.tensor([11.0, math.nan]))
    assert times.state_dict()["loss"] == pytest.approx([1.2, 2.0])


def test_no_loss_at_all_is_uniform_again():
    times = Importance(bins=4, momentum=0.0)
    times.update(torch.arange(4) / 4, torch.zeros(4))
    assert times.probabilities().tolist() == pytest.approx([0.25] * 4)
    assert times.sample(100).isfinite().all()


def test_only_losses_that_are_trained_on_count():
    times, t = Importance(bins=4), torch.rand(10)
    before = times.state_dict()
    with torch.no_grad():
        times.importance_weight(t, torch.full((10,), 7.0))
    assert times.state_dict() == before
    loss = torch.full((10,), 7.0, requires_grad=True)
    weighted = times.importance_weight(t, loss)
    assert times.state_dict() != before
    weighted.sum().backward()
    assert loss.grad is not None and torch.equal(loss.grad, torch.ones(10))  # the density before the update


@pytest.mark.parametrize("wrap", [lambda times: times, Stratified, Shifted], ids=["plain", "stratified", "shifted"])
def test_importance_state_comes_back(wrap):
    times, again = wrap(Importance(bins=8)), wrap(Importance(bins=8))
    times.importance_weight(torch.rand(50), torch.rand(50))
    again.load_state_dict(times.state_dict())
    assert again.state_dict() == times.state_dict()
    assert torch.equal(times.sample(9, CounterRng(0, 0, 9)), again.sample(9, CounterRng(0, 0, 9)))
    with pytest.raises(UserError, match="these importance times have 8 bins, and this object 4"):
        wrap(Importance(bins=4)).load_state_dict(times.state_dict())


def test_logistic_times_have_their_median_and_their_quartiles():
    times = Logistic(mean=-0.5, scale=0.4)
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    logits = torch.logit(times.quantile(levels))
    torch.testing.assert_close(logits, -0.5 + 0.4 * math.log(3) * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    near_uniform = Logistic(scale=1 - 1e-9).quantile(levels)
    torch.testing.assert_close(near_uniform, levels)
