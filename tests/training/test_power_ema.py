"""Power-function averages: against explicit sums, numerical integrals and the paper's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from advect.core.errors import UserError
from advect.training import EMA
from advect.training.ema import EMA_FILE, LONGEST, ema_weight, exponent, length_file, length_of
from advect.training.posthoc_ema import Profiles


def follow(weights: torch.Tensor, *lengths: float, at: tuple[int, ...] = ()) -> tuple[EMA, list[torch.Tensor]]:
    """The averages after the network had each row of weights (N, D), and those (lengths, D) after ``at`` updates."""
    p = nn.Parameter(torch.zeros(weights.shape[1]))
    ema, kept = EMA({"w": p}, 0.9, lengths=lengths), []
    for n, row in enumerate(weights, 1):
        with torch.no_grad():
            p.copy_(row)
        ema.update()
        if n in at:
            kept += [ema.shadows[length_file(length)]["w"].clone() for length in lengths]
    return ema, kept


def walk(steps: int, width: int = 8) -> torch.Tensor:
    """Weights that drift as in training: a random walk that starts far away, with noise."""
    rng = torch.Generator().manual_seed(0)
    drift = torch.randn(steps, width, generator=rng, dtype=torch.float64).cumsum(0) / math.sqrt(steps)
    noise = torch.randn(steps, width, generator=rng, dtype=torch.float64)
    return (3 * torch.exp(-torch.arange(steps) / (0.2 * steps))[:, None] + drift + 0.1 * noise).float()


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(length: float, gamma: float) -> None:
    assert exponent(length) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("length", [1e-4, 0.01, 0.05, 0.1, 0.2, 0.28, 0.2886])
def test_length_and_exponent_are_inverse(length: float) -> None:
    assert length_of(exponent(length)) == pytest.approx(length, rel=1e-9)


def test_the_length_is_the_standard_deviation_of_the_profile() -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000
    for length in (0.03, 0.1, 0.25):
        gamma = exponent(length)
        p = (gamma + 1) * tau**gamma
        mean = np.mean(p * tau)
        assert math.sqrt(np.mean(p * (tau - mean) ** 2)) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST, 0.3, math.nan])
def test_lengths_without_an_exponent_are_refused(length: float) -> None:
    with pytest.raises(UserError, match=r"an EMA length must be above 0 and below 0.289, got"):
        exponent(length)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_the_average_is_the_explicit_sum_over_all_weights(length: float) -> None:
    # The share of weights i in the integral up to n is (i / n)^(gamma + 1) - ((i - 1) / n)^(gamma + 1).
    weights = walk(700)
    edges = (torch.arange(701, dtype=torch.float64) / 700) ** (exponent(length) + 1)
    wanted = (edges.diff()[:, None] * weights.double()).sum(0)
    ema, _ = follow(weights, length)
    assert (ema.shadows[length_file(length)]["w"].double() - wanted).abs().max() < 1e-6


def test_the_start_of_the_network_is_forgotten_at_the_first_update() -> None:
    ema, _ = follow(torch.full((1, 3), 2.0), 0.05, 0.1)
    assert ema_weight(exponent(0.05), 1) == 1.0
    assert all(torch.equal(ema.shadows[length_file(length)]["w"], torch.full((3,), 2.0)) for length in (0.05, 0.1))


def test_a_power_average_leaves_the_decays_as_they_are() -> None:
    weights = walk(50)
    assert torch.equal(follow(weights, 0.05, 0.1)[0].shadow["w"], follow(weights)[0].shadow["w"])


def test_inner_products_equal_numerical_integrals() -> None:
    updates, lengths = [300, 300, 700, 1000], [0.05, 0.1, 0.1, 0.05]
    tau = np.arange(1_000_000) * 1e-3 + 5e-4
    curves = []
    for t, length in zip(updates, lengths, strict=True):
        gamma = exponent(length)
        curves.append(np.where(tau <= t, (gamma + 1) / t * np.minimum(tau / t, 1) ** gamma, 0))
    wanted = np.array([[np.sum(a * b) * 1e-3 for a in curves] for b in curves])
    assert Profiles(updates, lengths)._gram == pytest.approx(wanted, rel=1e-4, abs=1e-12)


def test_a_stored_length_is_rebuilt_as_it_is() -> None:
    profiles = Profiles([n for n in range(10, 101, 10) for _ in "ab"], [0.05, 0.1] * 10)
    fit = profiles.fit(100, 0.1)
    assert fit.error < 1e-6 and fit.factors == pytest.approx([0.0] * 19 + [1.0], abs=1e-6)
    middle = profiles.fit(50, 0.05)
    assert middle.error < 1e-6 and middle.factors[8] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.25])
def test_factors_sum_to_one_and_no_change_of_them_is_nearer(length: float) -> None:
    profiles = Profiles([n for n in range(10, 101, 10) for _ in "ab"], [0.05, 0.1] * 10)
    fit = profiles.fit(100, length)
    assert fit.factors.sum() == pytest.approx(1, abs=1e-9)
    wanted = profiles._against(np.array(100.0), np.array(exponent(length)))
    slope = profiles._gram @ fit.factors - wanted  # of the square error, equal in all directions that keep the sum
    assert np.ptp(slope) < 1e-9 * np.abs(wanted).max()


# At most so far off, as a share: the profile, and weights that move, from 20 snapshots of two lengths.
CASES = [(0.03, 0.03, 6e-4), (0.05, 1e-6, 1e-6), (0.07, 0.003, 6e-5), (0.1, 1e-6, 1e-6), (0.15, 0.007, 1e-4)]


@pytest.mark.parametrize(("length", "profile", "weights"), CASES)
def test_a_length_that_was_tracked_as_well_is_rebuilt_from_two_others(
    length: float, profile: float, weights: float
) -> None:
    path, at = walk(2000), tuple(range(100, 2001, 100))
    tracked = follow(path, length)[0].shadows[length_file(length)]["w"]
    _, stored = follow(path, 0.05, 0.1, at=at)
    fit = Profiles([n for n in at for _ in "ab"], [0.05, 0.1] * len(at)).fit(2000, length)
    rebuilt = torch.tensor(fit.factors, dtype=torch.float64) @ torch.stack(stored).double()
    assert fit.error < profile
    assert (rebuilt - tracked).norm() < weights * tracked.norm()
    if length not in (0.05, 0.1):  # what is nearest of the stored ones is much farther off
        near = min((tracked - other).norm() for other in stored[-2:])
        assert (rebuilt - tracked).norm() < near / 5


def test_the_reach_holds_the_stored_lengths_and_grows_with_the_snapshots() -> None:
    one = Profiles([100, 100], [0.05, 0.1]).reach(100, 0.1)
    many = Profiles([n for n in range(5, 101, 5) for _ in "ab"], [0.05, 0.1] * 20)
    assert one[0] >= 0.04 and one[1] <= 0.15
    low, high = many.reach(100, 0.1)
    assert low < 0.03 and high > 0.24
    assert many.fit(100, low).error <= 0.1 < many.fit(100, low - 0.005).error


def test_the_same_weights_stored_twice_do_no_harm() -> None:
    # A step that float16 skips stores the same averages again.
    once = Profiles([50, 50, 100, 100], [0.05, 0.1] * 2).fit(100, 0.07)
    twice = Profiles([50, 50, 100, 100, 100, 100], [0.05, 0.1] * 3).fit(100, 0.07)
    assert twice.error == pytest.approx(once.error, rel=1e-6) and np.abs(twice.factors).max() < 2


def test_files_are_named_after_decay_and_length() -> None:
    ema = EMA({"w": torch.zeros(2)}, 0.999, also=(0.9, 0.9999999), lengths=(0.05,))
    assert list(ema.shadows) == [
        EMA_FILE, "ema-0.9.safetensors", "ema-0.9999999.safetensors", "ema-length-0.05.safetensors",
    ]  # fmt: skip
    assert ema.lengths == {"ema-length-0.05.safetensors": 0.05}
