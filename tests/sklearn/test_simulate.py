"""Simulations: the same for any workers and after an interruption, failed ones counted."""

import warnings

import numpy as np
import pytest
import torch
from torch import distributions as laws

from advect import UserError, from_simulator

QUIET = {"progress": False, "seed": 4}
UNIFORM = (np.zeros(2), np.ones(2))


def noisy(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return theta + rng.standard_normal(theta.shape)


def fragile(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if theta[0] < 0.1:
        raise ArithmeticError("it exploded")
    return np.where(theta[1] < 0.2, np.nan, theta)


def test_workers_change_nothing():
    one = from_simulator(noisy, UNIFORM, 60, **QUIET)
    assert one.theta.shape == one.x.shape == (60, 2) and one.failed == 0
    for parallel in ("threads", "processes"):
        more = from_simulator(noisy, UNIFORM, 60, workers=2, parallel=parallel, **QUIET)
        assert np.array_equal(one.theta, more.theta) and np.array_equal(one.x, more.x)
    assert not np.array_equal(one.x, from_simulator(noisy, UNIFORM, 60, progress=False, seed=5).x)
    noise = (one.x - one.theta).ravel()
    assert len(np.unique(noise)) == 120 and abs(noise.mean()) < 0.3 and abs(noise.std() - 1) < 0.2


def test_failed_simulations_are_left_out_and_counted():
    with pytest.warns(UserWarning, match=r"of 400 simulations failed \(2.\..%\)"):
        found = from_simulator(fragile, UNIFORM, 400, failures=ArithmeticError, **QUIET)
    theta = from_simulator(noisy, UNIFORM, 400, **QUIET).theta
    fine = (theta[:, 0] >= 0.1) & (theta[:, 1] >= 0.2)
    assert found.failed == (~fine).sum() > 0
    assert np.array_equal(found.theta, theta[fine]) and np.array_equal(found.x, theta[fine])


def test_other_exceptions_are_raised():
    with pytest.raises(ArithmeticError, match="exploded"):
        from_simulator(fragile, UNIFORM, 400, failures=OSError, **QUIET)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_resumed_after_an_interruption_are_those_of_an_uninterrupted_call(tmp_path, batch_size):
    calls = []

    def counted(theta, rng):
        calls.append(len(np.atleast_2d(theta)))
        if stop and sum(calls) > 60:
            raise KeyboardInterrupt
        return noisy(theta, rng)

    options = {**QUIET, "folder": tmp_path / "sims", "batch_size": batch_size}
    stop = True
    with pytest.raises(KeyboardInterrupt):
        from_simulator(counted, UNIFORM, 120, **options)
    done, stop = sum(calls), False
    resumed = from_simulator(counted, UNIFORM, 120, **options)
    assert sum(calls) - done < 80  # and not all of them anew
    whole = from_simulator(noisy, UNIFORM, 120, batch_size=batch_size, **QUIET)
    assert np.array_equal(resumed.theta, whole.theta) and np.array_equal(resumed.x, whole.x)
    calls.clear()
    assert np.array_equal(from_simulator(counted, UNIFORM, 120, **options).x, whole.x) and not calls


def test_folders_of_others_and_damaged_parts_are_refused(tmp_path):
    from_simulator(noisy, UNIFORM, 20, folder=tmp_path / "a", **QUIET)
    with pytest.raises(UserError, match="of another prior, n, seed"):
        from_simulator(noisy, UNIFORM, 21, folder=tmp_path / "a", **QUIET)
    part = sorted((tmp_path / "a").glob("part-*.npz"))[3]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"part-00003.npz is damaged .* delete it"):
        from_simulator(noisy, UNIFORM, 20, folder=tmp_path / "a", **QUIET)
    part.unlink()
    again = from_simulator(noisy, UNIFORM, 20, folder=tmp_path / "a", **QUIET)
    assert np.array_equal(again.x, from_simulator(noisy, UNIFORM, 20, **QUIET).x)


def test_failed_ones_stay_failed_in_a_folder(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {**QUIET, "failures": ArithmeticError, "folder": tmp_path / "f"}
        first, second = (from_simulator(fragile, UNIFORM, 100, **options) for _ in range(2))
    assert first.failed == second.failed > 0 and np.array_equal(first.x, second.x)


def test_tensors_series_and_numbers_are_simulations():
    series = from_simulator(lambda theta, rng: torch.ones(5, 3) * theta[0], UNIFORM, 11, **QUIET)
    assert series.x.shape == (11, 5, 3) and np.allclose(series.x[:, 2, 1], series.theta[:, 0])
    assert from_simulator(lambda theta, rng: theta[0], UNIFORM, 11, **QUIET).x.shape == (11, 1)
    one = from_simulator(lambda theta, rng: theta[:, 0], UNIFORM, 11, batch_size=4, **QUIET)
    assert np.array_equal(one.x[:, 0], one.theta[:, 0])


@pytest.mark.parametrize(
    ("simulator", "prior", "options", "words"),
    [
        (noisy, "positive", {}, "without samples"),
        (noisy, (0.0, np.inf), {}, "without samples"),
        (noisy, None, {}, "without samples"),
        (noisy, laws.Poisson(torch.ones(1)), {}, "whole numbers"),
        (noisy, UNIFORM, {"n": 0}, "n must be"),
        (noisy, UNIFORM, {"workers": 0}, "workers must be"),
        (noisy, UNIFORM, {"batch_size": 0}, "batch_size must be"),
        (noisy, UNIFORM, {"parallel": "gpus"}, "parallel must be"),
        (lambda theta, rng: np.nan, UNIFORM, {}, "all 9 simulations failed"),
        (lambda theta, rng: "text", UNIFORM, {}, "no array of numbers"),
        (lambda theta, rng: np.zeros(int(theta[0] * 9)), UNIFORM, {}, "several shapes"),
        (lambda theta, rng: theta[:1], UNIFORM, {"batch_size": 3}, "give a row for each"),
    ],
)
def test_unusable_calls_are_refused(simulator, prior, options, words):
    with pytest.raises(UserError, match=words):
        from_simulator(simulator, prior, **{"n": 9, **QUIET, **options})
