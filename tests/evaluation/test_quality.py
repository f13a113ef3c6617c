"""Quality against cost, where the answer is known."""

from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.evaluation import Features, measure_quality
from advect.evaluation.study import plan


def measure(flow, n=600, **options):
    train, held_out = flow.data(n, 1)[0], flow.data(n, 2)[0]
    features = Features.fit(train, kind=flow.spec.kind)
    return measure_quality(flow, train, held_out, features=features, samples=n, **options), held_out


def test_one_euler_step_collapses_to_the_mean(plain):
    quality, held_out = measure(plain, nfes=(1,), solvers=("euler",))
    expected = held_out.var(0).sum() + (held_out.mean(0) - 2).square().sum()
    assert quality.curves["euler"][1] == pytest.approx(float(expected), rel=1e-4)


def test_more_evaluations_come_down_to_the_floor(plain):
    quality, _ = measure(plain)
    assert quality.curves["midpoint"][64] < 2 * quality.floor
    assert quality.curves["midpoint"][64] < 0.02 * quality.curves["euler"][1]
    assert quality.curves["euler"][1] > quality.curves["euler"][4] > quality.curves["euler"][16]
    assert quality.best[2] == min(min(c.values()) for c in quality.curves.values())


def test_every_set_starts_from_the_same_noise_and_costs_what_it_says(plain):
    quality, _ = measure(plain, nfes=(1, 2, 8))
    assert {(n, seed) for n, _, _, seed, _ in plain.calls} == {(600, 0)}
    assert {(solver, steps) for _, steps, solver, _, _ in plain.calls} == {
        *(("euler", 1), ("euler", 2), ("euler", 8)),
        *(("midpoint", 1), ("midpoint", 4)),
    }
    assert torch.equal(quality.final, plain.sample(600, steps=4, solver="midpoint", seed=0))


def test_midpoint_has_no_single_evaluation():
    assert plan((1, 2, 3, 4, 4), ("euler", "midpoint")) == {"euler": [1, 2, 3, 4], "midpoint": [2, 4]}
    with pytest.raises(UserError, match="no multiple of 2, which a step of midpoint costs"):
        plan((1, 3), ("midpoint",))
    with pytest.raises(UserError, match="at least 1, got \\[0\\]"):
        plan((0,), ("euler",))
    with pytest.raises(UserError, match="did you mean 'midpoint'"):
        plan((2,), ("midpiont",))


def test_the_floor_needs_as_many_training_rows(plain):
    x = plain.data(50, 0)[0]
    with pytest.raises(UserError, match=r"samples must be in 2 .. 50 .* got 51"):
        measure_quality(plain, x, x, features=Features.fit(x, kind="vector"), samples=51)


def test_large_images_are_compared_by_principal_components():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 200, generator=generator) @ torch.randn(200, 768, generator=generator)
    features = Features.fit(x.reshape(400, 3, 16, 16), kind="image")
    assert (features.dimensions, features.name) == (
        128,
        "the first 128 principal components of the training data's 768 pixels",
    )
    z = features(x.reshape(400, 3, 16, 16)).double()
    values = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)
    assert torch.allclose(z.var(0)[:64], values[:64], rtol=0.01)
    assert features.variance_kept == pytest.approx(float(values[:128].sum() / values.sum()), rel=0.01)


def test_small_data_are_compared_as_they_are():
    x = torch.randn(10, 2, 16, 16)
    features = Features.fit(x, kind="image")
    assert (features.name, features.dimensions, features.variance_kept) == ("pixel space", 512, 1.0)
    assert torch.equal(features(x), x.flatten(1))
