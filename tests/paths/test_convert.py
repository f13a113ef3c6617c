from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.core.types import expand_right
from advect.paths import (
    AffinePath,
    Coefficients,
    CondOT,
    GaussianMixture,
    Polynomial,
    VariancePreserving,
    convert,
)

PAIRS = list(itertools.product(convert.KINDS, repeat=2))


def truth(shape, alpha, sigma, d_alpha, d_sigma, seed=0):
    """x and the four fields of it where x1 and x0 are known, with coefficients (B,)."""
    data, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c = Coefficients(*(torch.full(shape[:1], float(v), dtype=torch.float64) for v in (alpha, sigma, d_alpha, d_sigma)))
    a, s, da, ds = (expand_right(v, data) for v in c)
    fields = {"velocity": da * data + ds * noise, "data": data, "noise": noise, "score": -noise / s}
    return a * data + s * noise, c, fields


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    alpha=st.floats(0.05, 2),
    sigma=st.floats(0.05, 2),
    d_alpha=st.floats(0.05, 5),
    d_sigma=st.floats(-5, 0),
)
def test_each_field_gives_each_other(shape, alpha, sigma, d_alpha, d_sigma):
    x, c, fields = truth(tuple(shape), alpha, sigma, d_alpha, d_sigma)
    for source, target in PAIRS:
        found = convert.convert(fields[source], x, c, source, target)
        torch.testing.assert_close(found, fields[target], rtol=1e-6, atol=1e-8)
    for source in convert.KINDS:
        found = convert.data_minus_noise(fields[source], x, c, source)
        torch.testing.assert_close(found, fields["data"] - fields["noise"], rtol=1e-6, atol=1e-8)


def test_the_functions_are_those_of_the_table():
    x, c, fields = truth((3, 2), 0.3, 0.8, 1.2, -0.7)
    coefficients = [expand_right(v, x) for v in c]
    for source, target in PAIRS:
        if source != target:
            function = getattr(convert, f"{target}_from_{source}")
            assert torch.equal(
                function(fields[source], x, *coefficients), convert.convert(fields[source], x, c, source, target)
            )


def test_the_score_is_that_of_the_exact_marginal():
    path = AffinePath(VariancePreserving())
    law = GaussianMixture(torch.tensor([[1.0, 2], [-1, 0], [0, 0.5]], dtype=torch.float64), 0.3, path=path)
    t = torch.linspace(0.05, 0.95, 11, dtype=torch.float64)
    x = law.sample(11, t, torch.Generator().manual_seed(0))
    for source, target in PAIRS:
        found = path.convert(getattr(law, source)(x, t), x, t, source, target)
        torch.testing.assert_close(found, getattr(law, target)(x, t), rtol=1e-9, atol=1e-9)


def test_coefficients_may_be_aligned_already_and_the_dtype_is_that_of_x():
    x, c, fields = truth((4, 3, 2, 2), 0.3, 0.8, 1.2, -0.7)
    aligned = Coefficients(*(expand_right(v, x) for v in c))
    for dtype in (torch.float32, torch.float64):
        one, two = (
            convert.convert(fields["velocity"].to(dtype), x.to(dtype), k, "velocity", "data") for k in (c, aligned)
        )
        assert torch.equal(one, two) and one.dtype == dtype


def test_single_precision_is_kept_next_to_the_ends():
    # The naive data = x + (1 - t) u and noise = x - t u are exact on the line; these must not lose digits either.
    t = torch.cat([torch.logspace(-6, -1, 20), 1 - torch.logspace(-6, -1, 20)])
    x, u = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
    c = CondOT().coefficients(t)
    for kind, value in (("data", x + (1 - t[:, None]) * u), ("noise", x - t[:, None] * u)):
        torch.testing.assert_close(convert.convert(u, x, c, "velocity", kind), value, rtol=1e-6, atol=1e-6)
    score = convert.convert(u, x, c, "velocity", "score") * (1 - t[:, None])
    torch.testing.assert_close(score, t[:, None] * u - x, rtol=1e-5, atol=1e-6)


def test_the_ends_give_what_they_determine():
    x, u = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, end = (CondOT().coefficients(torch.tensor([t], dtype=torch.float64)) for t in (0.0, 1.0))
    assert torch.equal(convert.convert(u, x, start, "velocity", "data"), x + u)
    assert torch.equal(convert.convert(u, x, start, "velocity", "noise"), x)
    assert torch.equal(convert.convert(u, x, start, "velocity", "score"), -x)
    assert torch.equal(convert.convert(u, x, start, "data", "velocity"), u - x)
    assert torch.equal(convert.convert(u, x, end, "velocity", "data"), x)
    assert torch.equal(convert.convert(u, x, end, "velocity", "noise"), x - u)
    assert torch.equal(convert.convert(u, x, end, "noise", "velocity"), x - u)
    assert torch.equal(convert.convert(u, x, end, "score", "velocity"), x)


@pytest.mark.parametrize(
    ("source", "target", "schedule", "t", "message"),
    [
        ("noise", "data", CondOT(), 0.0, "the data of a prediction of noise is not defined where alpha = 0"),
        ("score", "data", CondOT(), 0.0, "the data of a score is not defined where alpha = 0.*stay at t >= 0.001"),
        ("noise", "velocity", CondOT(), 0.0, "the velocity of a prediction of noise is not defined where alpha = 0"),
        ("score", "velocity", CondOT(), 0.0, "the velocity of a score is not defined where alpha = 0"),
        ("data", "velocity", CondOT(), 1.0, "the velocity of a prediction of data is not defined where sigma = 0"),
        ("data", "noise", CondOT(), 1.0, "the noise of a prediction of data is not defined where sigma = 0"),
        ("data", "velocity", VariancePreserving(), 0.0, "no velocity where d_alpha or d_sigma is infinite"),
        ("velocity", "data", VariancePreserving(), 0.0, "no velocity where d_alpha or d_sigma is infinite"),
        ("velocity", "noise", Polynomial(2), 0.0, "the velocity says nothing where the schedule stands still"),
    ],
)
def test_what_is_not_determined_is_refused(source, target, schedule, t, message):
    x = torch.ones(2, 3)
    with pytest.raises(UserError, match=message):
        convert.convert(x, x, schedule.coefficients(torch.tensor([0.5, t])), source, target)


def test_mistakes_are_named():
    x, c, _ = truth((2, 3), 0.5, 0.5, 1, -1)
    with pytest.raises(UserError, match=r"there is no 'nois' to convert; did you mean 'noise'\?"):
        convert.convert(x, x, c, "nois", "data")
    with pytest.raises(UserError, match="there is no 'x0' to convert; choose from velocity, data, noise, score"):
        convert.convert(x, x, c, "data", "x0")
    with pytest.raises(UserError, match=r"the data must have the shape of x, \(2, 3\), got \(2, 1\)"):
        convert.convert(x[:, :1], x, c, "data", "noise")
