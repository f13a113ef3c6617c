from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.couplings import (
    ConditionalOT,
    ExactOT,
    GivenPairs,
    Independent,
    Sinkhorn,
    assign,
    squared_distances,
)


def batch(n: int, *shape: int, seed: int = 0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and two clusters apart from it."""
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, n, *shape, generator=generator, dtype=dtype)
    side = torch.randint(0, 2, (n,), generator=generator).reshape(-1, *[1] * len(shape))
    return x0, 0.5 * x1 + 3 * side - 1


def mean_cost(x0: torch.Tensor, x1: torch.Tensor) -> float:
    return float((x1 - x0).double().flatten(1).square().sum(1).mean())


def rows(x: torch.Tensor) -> list[list[float]]:
    return sorted(x.flatten(1).tolist())


def test_independent_pairs_row_by_row_and_copies_nothing():
    x0, x1, cond = torch.randn(4, 2), torch.randn(4, 2), {"label": torch.arange(4)}
    paired = Independent().pair(x0, x1, cond)
    assert all(a is b for a, b in zip(paired, (x0, x1, cond), strict=True))


def test_independent_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    Independent().pair(torch.zeros(4, 2), torch.zeros(4, 2), None, generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("a", "b"), [((4, 2), (3, 2)), ((4, 2), (4, 3)), ((4, 1, 2, 2), (4, 4))])
def test_batches_that_do_not_fit_are_refused(a, b):
    with pytest.raises(UserError, match="x0 and x1 must have the same shape"):
        Independent().pair(torch.zeros(a), torch.zeros(b))


def test_squared_distances_are_those_of_the_rows():
    x0, x1 = batch(9, 2, 3, 4)
    found = squared_distances(x1, x0)
    expected = (x1[:, None] - x0[None]).flatten(2).square().sum(2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    far = squared_distances((x1 + 1e3).float(), (x0 + 1e3).float())  # the centre does not count
    torch.testing.assert_close(far.double(), expected, rtol=1e-3, atol=1e-3)
    assert squared_distances(x1.half(), x0.half()).dtype == torch.float32


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2, 3)])
def test_exact_transport_equals_brute_force(n, shape):
    for seed in range(5):
        x0, x1 = batch(n, *shape, seed=seed)
        best = min(mean_cost(x0[list(p)], x1) for p in itertools.permutations(range(n)))
        assert mean_cost(*ExactOT().pair(x0, x1)[:2]) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("n", [60, 128])  # on either side of the size from which the cost is flattened
@pytest.mark.parametrize("d", [2, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_transport_equals_two_other_solvers(n, d, dtype):
    x0, x1 = batch(n, d, dtype=dtype)
    y0, y1, _ = ExactOT().pair(x0, x1)
    cost = torch.cdist(x1.double(), x0.double(), compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    rel = 1e-12 if dtype == torch.float64 else 1e-6
    assert mean_cost(y0, y1) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=rel)
    mass = np.full(n, 1 / n)
    assert mean_cost(y0, y1) == pytest.approx((ot.emd(mass, mass, cost) * cost).sum(), rel=rel)
    assert mean_cost(y0, y1) < mean_cost(x0, x1)


@pytest.mark.parametrize("shape", [(7, 1), (40, 2), (33, 3, 1, 1), (16, 1, 4, 4), (200, 2), (140, 5)])
def test_exact_transport_is_a_permutation_that_leaves_the_data_alone(shape):
    x0, x1 = batch(*shape)
    cond = {"label": torch.arange(shape[0])}
    y0, y1, y_cond = ExactOT().pair(x0, x1, cond)
    assert rows(y0) == rows(x0) and y0.shape == shape
    assert y1 is x1 and y_cond is cond
    assert mean_cost(y0, y1) <= mean_cost(x0, x1)


def test_what_is_paired_already_stays():
    x1 = batch(50, 2)[1]
    for x0 in (x1, x1 * 2 + 3):  # a gradient of a convex function is the best map
        assert torch.equal(ExactOT().pair(x0, x1)[0], x0)


def test_one_dimension_is_sorted_and_ties_are_no_trouble():
    x0, x1 = batch(64, 1)
    y0, y1, _ = ExactOT().pair(x0, x1)
    assert torch.equal(y0.flatten()[y1.flatten().argsort()], x0.flatten().sort().values)
    cost = (x1 - x0.T).square().numpy()
    assert mean_cost(y0, y1) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-12)
    x1 = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    assert mean_cost(*ExactOT().pair(1 - x1, x1)[:2]) == 0


def test_an_empty_batch_stays_empty():
    assert ExactOT().pair(torch.zeros(0, 2), torch.zeros(0, 2))[0].shape == (0, 2)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12, 1e30])
@pytest.mark.parametrize("n", [60, 140])
def test_assignment_at_any_scale_and_with_ties(scale, n):
    generator = torch.Generator().manual_seed(0)
    for cost in (torch.randn(n, n, generator=generator), torch.randint(0, 3, (n, n), generator=generator)):
        cost = cost.double() * scale
        found = assign(cost)
        assert found.sort().values.tolist() == list(range(n))
        best = cost.numpy()[linear_sum_assignment(cost.numpy())].sum()
        assert float(cost[torch.arange(n), found].sum()) == pytest.approx(best, rel=1e-9, abs=1e-9 * scale)


@pytest.mark.parametrize("coupling", [ExactOT(), ConditionalOT(), ConditionalOT(penalty=1.0)], ids=repr)
def test_samples_that_are_not_finite_are_refused(coupling):
    x0, x1 = batch(6, 2)
    x1[2] = math.nan
    with pytest.raises(UserError, match="x0 and x1 must be finite to be paired by transport"):
        coupling.pair(x0, x1, {"label": torch.zeros(6, dtype=torch.long)})


def test_an_infinite_penalty_keeps_the_noise_in_its_group():
    x0, x1 = batch(60, 2)
    cond = {"a": torch.arange(60) % 2, "b": torch.arange(60) % 3 - 1}
    y0, y1, y_cond = ConditionalOT().pair(x0, x1, cond)
    assert y1 is x1 and y_cond is cond
    for group in range(6):  # a and b together
        here = torch.arange(60) % 6 == group
        assert rows(y0[here]) == rows(x0[here])
        assert mean_cost(y0[here], x1[here]) == pytest.approx(
            mean_cost(ExactOT().pair(x0[here], x1[here])[0], x1[here]), rel=1e-12
        )


def test_a_penalty_lies_between_none_and_an_infinite_one():
    x0, x1 = batch(80, 3)
    cond = {"label": (x1[:, 0] > 0.5).long()}

    def result(coupling) -> tuple[float, int]:
        order = torch.arange(80.0)[:, None]
        y0 = coupling.pair(torch.cat([x0, order.double() * 1e-9], 1), torch.cat([x1, order * 0], 1), cond)[0]
        came_from = (y0[:, 3] * 1e9).round().long()
        return mean_cost(y0[:, :3], x1), int((cond["label"][came_from] != cond["label"]).sum())

    plain, strict = result(ExactOT()), result(ConditionalOT())
    assert result(ConditionalOT(penalty=0.0)) == pytest.approx(plain, rel=1e-6)
    assert result(ConditionalOT(penalty=1e6)) == pytest.approx(strict, rel=1e-6)
    costs, changes = zip(*(result(ConditionalOT(penalty=p)) for p in (0, 0.05, 0.2, 1, 1e6)), strict=True)
    assert list(costs) == sorted(costs) and list(changes) == sorted(changes, reverse=True)
    assert strict[1] == 0 and plain[1] > 10


@pytest.mark.parametrize("dimensions", [1, 2])
def test_only_conditional_transport_leaves_the_source_independent_of_the_condition(dimensions):
    n, steps = 100, 40
    means, spreads = {}, {}
    for coupling in (ExactOT(), ConditionalOT(), Independent()):
        drawn = []
        for step in range(steps):
            x0 = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(step))
            label = torch.arange(n) % 2
            x1 = torch.zeros(n, dimensions)
            x1[:, 0] = 4.0 * label - 2
            x1 += 0.3 * torch.randn(n, dimensions, generator=torch.Generator().manual_seed(1000 + step))
            drawn.append(coupling.pair(x0, x1, {"label": label})[0][label == 1, 0])
        x = torch.cat(drawn)
        means[type(coupling)], spreads[type(coupling)] = float(x.mean()), float(x.std())
    error = 5 / (n * steps / 2) ** 0.5
    # Plain transport gives this class the upper half of the Gaussian: mean sqrt(2 / pi), variance 1 - 2 / pi.
    assert means[ExactOT] == pytest.approx(math.sqrt(2 / math.pi), abs=error)
    assert spreads[ExactOT] == pytest.approx(math.sqrt(1 - 2 / math.pi), abs=error)
    for kept in (ConditionalOT, Independent):
        assert means[kept] == pytest.approx(0, abs=error) and spreads[kept] == pytest.approx(1, abs=error)


@pytest.mark.parametrize("penalty", [-0.1, math.nan])
def test_a_penalty_is_not_negative(penalty):
    with pytest.raises(UserError, match=r"ConditionalOT\.penalty must be (finite and )?at least 0, got"):
        ConditionalOT(penalty=penalty)


@pytest.mark.parametrize("shape", [(40, 2), (20, 1, 4, 4)])
def test_sinkhorn_has_the_marginals_of_a_plan(shape):
    plan = Sinkhorn(iterations=200).log_plan(*batch(*shape)).exp()
    ones = torch.ones(shape[0], dtype=plan.dtype)
    torch.testing.assert_close(plan.sum(1), ones, rtol=1e-9, atol=0)
    torch.testing.assert_close(plan.sum(0), ones, rtol=0, atol=2e-2)


def test_sinkhorn_is_that_of_another_library():
    x0, x1 = batch(30, 2)
    cost = squared_distances(x1, x0)
    mass = np.full(30, 1 / 30)
    reg = 0.2 * float(cost.mean())
    theirs = ot.sinkhorn(mass, mass, cost.numpy(), reg, method="sinkhorn_log", numItermax=5000, stopThr=1e-12)
    ours = Sinkhorn(epsilon=0.2, iterations=2000).log_plan(x0, x1).exp() / 30
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-6, atol=1e-12)


def test_sinkhorn_tends_to_exact_transport():
    x0, x1 = batch(40, 2)
    cost = squared_distances(x1, x0)
    exact = mean_cost(*ExactOT().pair(x0, x1)[:2])
    costs = [
        float((Sinkhorn(epsilon=e, iterations=n).log_plan(x0, x1).exp() * cost).sum(1).mean())
        for e, n in ((10.0, 50), (0.5, 100), (0.05, 500), (0.002, 5000))
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(float(cost.mean()), rel=0.1)  # all regularisation: any pair
    assert costs[-1] == pytest.approx(exact, rel=0.01)


def test_sinkhorn_draws_from_its_plan():
    x0, x1 = batch(5, 2)
    coupling, steps = Sinkhorn(epsilon=0.5, iterations=5), 1000
    plan = coupling.log_plan(x0, x1).exp()
    counts = torch.zeros(5, 5, dtype=plan.dtype)
    for step in range(steps):
        y0, y1, _ = coupling.pair(x0, x1, None, CounterRng(0, step, 5))
        assert y1 is x1
        counts += (y0[:, None] == x0[None]).all(2)
    assert (counts / steps - plan).abs().max() < 4 * 0.5 / steps**0.5


def test_sinkhorn_of_equal_samples_is_finite():
    x = torch.ones(4, 2)
    torch.testing.assert_close(Sinkhorn().log_plan(x, x).exp(), torch.full((4, 4), 0.25))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epsilon": 0.0}, r"Sinkhorn\.epsilon must be above 0 and at most 1,000,000, got 0\.0; 0\.05 is usual"),
        ({"epsilon": math.inf}, r"Sinkhorn\.epsilon must be finite and above 0 and at most 1,000,000, got inf"),
        ({"iterations": 0}, r"Sinkhorn\.iterations must be at least 1 and at most 100,000, got 0; 100 is usual"),
    ],
)
def test_sinkhorn_settings_are_checked(setting, message):
    with pytest.raises(UserError, match=message):
        Sinkhorn(**setting)


def test_given_pairs_are_those_given():
    x0, x1 = batch(4, 1, 3, 3)
    cond = {"dose": torch.arange(4)}
    y0, y1, y_cond = GivenPairs(lambda x, c: x * c["dose"].view(-1, 1, 1, 1)).pair(x0, x1, cond)
    assert torch.equal(y0, x1 * torch.arange(4).view(-1, 1, 1, 1))
    assert y1 is x1 and y_cond is cond


@pytest.mark.parametrize("dims", [2, 300])
def test_mixed_precision_changes_no_pair(dims):
    x0, x1 = torch.randn(2, 200, dims, generator=torch.Generator().manual_seed(0))
    for coupling in (ExactOT(), Sinkhorn()):
        plain = coupling.pair(x0, x1, None, torch.Generator().manual_seed(1))[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = coupling.pair(x0, x1, None, torch.Generator().manual_seed(1))[0]
        assert torch.equal(plain, mixed)


def test_a_continuous_condition_is_kept_independent_of_the_noise_at_lower_cost():
    n, steps, coupling, slopes, costs = 128, 40, ConditionalOT(), [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        c, noise, x0 = torch.randn(n, 1, generator=generator), *torch.randn(2, n, 2, generator=generator)
        x1 = torch.cat([c, -c], 1) + 0.3 * noise
        y0, _, _ = coupling.pair(x0, x1, {"dose": c})
        slopes.append((y0 * c).mean(0))
        costs.append(torch.tensor([mean_cost(x0, x1), mean_cost(y0, x1)]))
    before, after = torch.stack(costs).mean(0).tolist()
    assert after < 0.9 * before  # groups of equal values would have one row each, and change nothing
    assert torch.stack(slopes).mean(0).abs().max() < 0.02 + 4 / (n * steps) ** 0.5  # plain transport: 0.68


def test_missing_continuous_conditions_are_a_group():
    x0, x1 = batch(40, 2)
    dose = torch.randn(40, 1)
    dose[::2] = math.nan
    y0 = ConditionalOT().pair(x0, x1, {"dose": dose})[0]
    assert rows(y0[::2]) == rows(x0[::2])
    assert mean_cost(y0[::2], x1[::2]) == pytest.approx(mean_cost(ExactOT().pair(x0[::2], x1[::2])[0], x1[::2]))


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn()], ids=repr)
def test_padding_does_not_count_in_the_pairing(coupling):
    n, steps = 6, 5
    x0, x1 = batch(n, steps, 2)
    length = torch.tensor([1, 2, 3, 4, 5, 2])
    real = (torch.arange(steps) < length[:, None])[:, :, None]
    x1 = x1 * real
    y0 = coupling.pair(x0, x1, {"length": length}, torch.Generator().manual_seed(0))[0]
    if isinstance(coupling, ExactOT):
        best = min(mean_cost(x0[list(p)] * real, x1) for p in itertools.permutations(range(n)))
        assert mean_cost(y0 * real, x1) == pytest.approx(best)
    every = torch.full((n,), 2)
    junk = x0 + 100 * (torch.arange(steps) >= 2)[:, None] * torch.randn(n, steps, 2)
    pairs = [
        coupling.pair(x, x1 * 0 + x1[:, :1], {"length": every}, torch.Generator().manual_seed(0))[0]
        for x in (x0, junk)
    ]
    assert torch.equal(pairs[0][:, :2], pairs[1][:, :2])


def test_whole_numbers_are_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"x1 holds torch\.int64, and a flow needs real numbers"):
        ExactOT().pair(torch.randn(4, 2), torch.arange(8).reshape(4, 2))
