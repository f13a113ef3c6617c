"""Moments in batches against NumPy, and the Frechet distances made of them against SciPy's square root of a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file

from advect.core.errors import UserError
from advect.distributed.comm import all_objects, current
from advect.metrics import GaussianFit, Moments, extrapolate, frechet_at_infinity, frechet_distance
from forked import run_ranks


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + seed)


def of_batches(x: torch.Tensor, size: int) -> Moments:
    return sum(map(Moments.from_samples, x.split(size)), Moments.zero(x.shape[1]))


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_batches_of_any_size_give_numpys_moments_far_from_the_origin(size: int) -> None:
    x = draw(300, 12, 0) + 1e6
    found = of_batches(x, size)
    assert found.count == 300
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-14)
    wanted = np.cov((x - 1e6).numpy(), rowvar=False)
    np.testing.assert_allclose(found.covariance, wanted, rtol=1e-7, atol=1e-7 * wanted.max())


def test_ranks_and_batches_agree_to_rounding_and_survive_a_file(tmp_path) -> None:
    x, target = draw(400, 20, 1), GaussianFit.from_samples(draw(300, 20, 2))
    whole = of_batches(x, 400)
    ranks = Moments.merged([of_batches(x[:130], 32), of_batches(x[130:], 50)])
    save_file(ranks.to_tensors(), tmp_path / "m.safetensors")
    again = Moments.from_tensors(load_file(tmp_path / "m.safetensors"))
    assert again.count == 400 and torch.equal(again.scatter, ranks.scatter) and torch.equal(again.mean, ranks.mean)
    distances = [GaussianFit.from_running(m).distance(target) for m in (whole, again)]
    assert distances[1] == pytest.approx(distances[0], rel=1e-12)
    assert distances[0] == pytest.approx(frechet_distance(x, draw(300, 20, 2)), rel=1e-10)


def distance_together(n: int, d: int) -> float:
    """Each rank has every second sample, in batches of its own."""
    own = draw(n, d, 1)[current().rank :: current().world]
    whole = Moments.merged(all_objects(of_batches(own, 10 + current().rank)))
    assert whole.count == n
    return GaussianFit.from_running(whole).distance(GaussianFit.from_samples(draw(300, d, 2)))


def test_two_processes_give_the_number_of_one() -> None:
    first, second = run_ranks(2, distance_together, 401, 20)
    assert first == second == pytest.approx(distance_together(401, 20), rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(500, 400, 40), (30, 400, 60), (40, 25, 96)])
def test_equals_scipys_arithmetic_also_with_fewer_samples_than_dimensions(n: int, m: int, d: int) -> None:
    x, y = draw(n, d, 3), draw(m, d, 4)
    c1, c2 = (np.cov(v.numpy(), rowvar=False) for v in (x, y))
    root = scipy.linalg.sqrtm(c1 @ c2).real
    # torch-fidelity's way: the root's trace is that of the roots of the product's eigenvalues.
    by_values = np.sqrt(np.maximum(scipy.linalg.eigvals(c1 @ c2).real, 0)).sum()
    means = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    found = GaussianFit.from_running(of_batches(x, 16)).distance(GaussianFit.from_running(of_batches(y, 16)))
    assert found == pytest.approx(means + np.trace(c1 + c2) - 2 * np.trace(root), rel=1e-6)
    assert found == pytest.approx(means + np.trace(c1 + c2) - 2 * by_values, rel=1e-6)
    assert found == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_a_line_in_one_over_n_is_found_exactly() -> None:
    sizes = [100, 200, 400, 1000]
    found = extrapolate(sizes, [3 + 50 / n for n in sizes])
    assert (found.value, found.slope) == pytest.approx((3, 50)) and found.residual < 1e-12


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_infinitely_many_gaussians_have_the_closed_form_and_finitely_many_have_not(shift: float) -> None:
    d, n = 16, 4000
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    target = GaussianFit.from_moments(torch.full((d,), shift / d**0.5), torch.eye(d))
    found = [frechet_at_infinity(x, target, seed=seed) for seed in range(3)]
    finite = GaussianFit.from_samples(x[:400]).distance(target)
    # Means add d / N and covariances d (d + 1) / (4 N).
    assert found[0].slope == pytest.approx(d + d * (d + 1) / 4, rel=0.35 if not shift else 1)
    assert abs(np.mean([f.value for f in found]) - shift**2) < (0.006 if not shift else 0.06)
    assert found[0].sizes[0] == 400 and found[0].sizes[-1] == n and len(found[0].distances) == 15
    if not shift:
        assert finite > 0.1 > 10 * abs(found[0].value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: Moments.from_samples(x[:1]).covariance, "2 samples or more, got 1"),
        (lambda x: Moments.from_samples(x) + Moments.zero(3), "same dimension, got 2 and 3"),
        (lambda x: Moments.from_samples(x * torch.nan), "x has NaN or infinite values in 10 of 10"),
        (lambda x: frechet_at_infinity(x, GaussianFit.from_samples(x)), "smallest must be in 2 .. -5 for 10 samples"),
        (lambda x: frechet_at_infinity(x, GaussianFit.from_samples(x), points=2), "points must be at least 3, got 2"),
        (lambda x: extrapolate([5, 5, 6], [1, 1, 1]), "three different numbers >= 2"),
        (lambda x: extrapolate([4, 5, 6], [1, 1, float("nan")]), "distances must be finite"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.arange(20.0).reshape(10, 2))
