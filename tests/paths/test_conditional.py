from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.paths import AffinePath, InterpolantPath, Trigonometric

LINE = InterpolantPath(lambda x0, x1, t: (1 - t) * x0 + t * x1)


def ends(*shape, dtype=torch.float64):
    x0, x1 = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x0, x1, torch.linspace(0, 1, shape[0], dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_linear_one_is_the_straight_path(shape):
    x0, x1, t = ends(*shape)
    mine, line = LINE.sample(x0, x1, t), AffinePath().sample(x0, x1, t)
    torch.testing.assert_close(mine.x_t, line.x_t, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(mine.u_t, line.u_t, rtol=1e-14, atol=1e-14)


def test_the_quarter_circle_is_trigonometric():
    psi = lambda x0, x1, t: torch.cos(math.pi / 2 * t) * x0 + torch.sin(math.pi / 2 * t) * x1
    x0, x1, t = ends(6, 2, 3)
    mine, affine = InterpolantPath(psi).sample(x0, x1, t), AffinePath(Trigonometric()).sample(x0, x1, t)
    torch.testing.assert_close(mine.x_t, affine.x_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine.u_t, affine.u_t, rtol=1e-12, atol=1e-12)


def test_great_circles_keep_to_the_sphere():
    # Not affine: spherical interpolation, whose velocity is tangent and as fast as the angle.
    def psi(x0, x1, t):
        angle = torch.acos((x0 * x1).sum(1, keepdim=True))
        return (torch.sin((1 - t) * angle) * x0 + torch.sin(t * angle) * x1) / torch.sin(angle)

    x0, x1, t = ends(8, 3)
    x0, x1 = (torch.nn.functional.normalize(x) for x in (x0, x1))
    point = InterpolantPath(psi).sample(x0, x1, t)
    torch.testing.assert_close(point.x_t.norm(dim=1), torch.ones(8, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (point.x_t * point.u_t).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(point.u_t.norm(dim=1), torch.acos((x0 * x1).sum(1)), rtol=1e-12, atol=0)


def test_it_works_without_gradients_and_lets_them_through():
    x0, x1, t = ends(4, 2)
    with torch.no_grad():
        assert torch.equal(LINE.sample(x0, x1, t).u_t, x1 - x0)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    bent = InterpolantPath(lambda x0, x1, t: (1 - t) * x0 + t * x1 + scale * t * (1 - t))
    bent.sample(x0, x1, t).u_t.sum().backward()
    torch.testing.assert_close(scale.grad, (2 * (1 - 2 * t)).sum(), rtol=1e-12, atol=1e-12)


def test_mistakes_are_named():
    x0, x1, t = ends(4, 2)
    with pytest.raises(UserError, match=r"psi must be a function of \(x0, x1, t\), got 'line'"):
        InterpolantPath("line")
    with pytest.raises(UserError, match=r"psi must return the shape of x0 and x1, \(4, 2\), got \(4, 1\)"):
        InterpolantPath(lambda x0, x1, t: t).sample(x0, x1, t)
    with pytest.raises(UserError, match="an InterpolantPath has no score"):
        LINE.conditional_score(x0, t, x1=x1, x0=x0)
    with pytest.raises(UserError, match="InterpolantPath has a law given both ends only; pass x0"):
        LINE.conditional_velocity(x0, t, x1=x1)
