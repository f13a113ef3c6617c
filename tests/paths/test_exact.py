from __future__ import annotations

import math

import pytest
import torch
from runge_kutta import rk4
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import (
    AffinePath,
    BetaLinear,
    CondOT,
    Cosine,
    FiniteData,
    GaussianMixture,
    LipmanOT,
    Polynomial,
    Trigonometric,
    VariancePreserving,
)

D64 = torch.float64
MEANS = torch.tensor([[2.0, 0], [-1, 1.5], [0, -2]], dtype=D64)
STDS, WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=D64), torch.tensor([1.0, 2, 3], dtype=D64)
ROOTS = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(4), dtype=D64)
COVARIANCES = ROOTS @ ROOTS.mT + 0.05 * torch.eye(2, dtype=D64)
PATHS = [
    AffinePath(),
    AffinePath(sigma_min=0.4),
    *map(AffinePath, (LipmanOT(0.1), Polynomial(2), VariancePreserving(), Trigonometric(), Cosine(), BetaLinear())),
]


def laws(path):
    return {
        "isotropic": GaussianMixture(MEANS, STDS, WEIGHTS, path=path),
        "full": GaussianMixture(MEANS, weights=WEIGHTS, covariances=COVARIANCES, path=path),
        "points": FiniteData(MEANS, path=path),
    }


ALL = [pytest.param(law, id=f"{name}-{path}") for path in PATHS for name, law in laws(path).items()]
T = torch.linspace(0.05, 0.95, 12, dtype=D64)


def points(law, t=T):
    """Places where the law is at home, and one far away."""
    x = law.sample(len(t), t, torch.Generator().manual_seed(0))
    x[-1] += 6
    return x


def covariances(law):
    if isinstance(law, FiniteData):
        return torch.zeros(3, 2, 2, dtype=D64), torch.ones(3, dtype=D64)
    return (STDS**2)[:, None, None] * torch.eye(2, dtype=D64) if law.covariances is None else COVARIANCES, WEIGHTS


@pytest.mark.parametrize("law", ALL)
class TestExact:
    def test_the_density_is_that_of_the_mixture(self, law):
        # An independent implementation, time by time: torch.distributions.
        cov, weights = covariances(law)
        x = points(law)
        for i, t in enumerate(T):
            c = law.path.schedule.coefficients(t)
            noise = (c.sigma**2 + law.path.sigma_min**2) * torch.eye(2, dtype=D64)
            parts = MultivariateNormal(c.alpha * MEANS, c.alpha**2 * cov + noise)
            truth = MixtureSameFamily(Categorical(weights), parts).log_prob(x[i])
            torch.testing.assert_close(law.log_prob(x, T)[i], truth, rtol=1e-9, atol=1e-9)

    def test_the_score_is_the_gradient_of_the_density(self, law):
        x = points(law).requires_grad_()
        (gradient,) = torch.autograd.grad(law.log_prob(x, T).sum(), x)
        torch.testing.assert_close(law.score(x, T), gradient, rtol=1e-8, atol=1e-8)

    def test_the_velocity_moves_the_density(self, law):
        # The continuity equation: d log p / dt + div u + u . grad log p = 0.
        x, t = points(law).requires_grad_(), T.clone().requires_grad_()
        d_x, d_t = torch.autograd.grad(law.log_prob(x, t).sum(), (x, t))
        u = law.velocity(x, T)
        divergence = sum(torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        residual = d_t + divergence + (u * d_x).sum(1)
        assert (residual.abs() / (1 + d_t.abs() + (u * d_x).sum(1).abs())).max() < 1e-9

    def test_data_and_noise_make_up_the_point_and_the_velocity(self, law):
        x = points(law)
        c = law.path.coefficients(T)
        data, noise = law.data(x, T), law.noise(x, T)
        torch.testing.assert_close(c.alpha[:, None] * data + c.sigma[:, None] * noise, x, rtol=1e-9, atol=1e-9)
        u = c.d_alpha[:, None] * data + c.d_sigma[:, None] * noise
        torch.testing.assert_close(law.velocity(x, T), u, rtol=1e-8, atol=1e-8)

    def test_it_is_drawn_as_it_says(self, law):
        # Mean and variance of draws against the closed form, within five standard errors.
        n, t = 20_000, 0.7
        cov, weights = covariances(law)
        w = (weights / weights.sum())[:, None]
        mean = (w * MEANS).sum(0)
        var = (w * (cov.diagonal(dim1=1, dim2=2) + MEANS**2)).sum(0) - mean**2
        c = law.path.coefficients(torch.tensor([t], dtype=D64))
        x = law.sample(n, t, CounterRng(0, 0, n))
        error = 5 * x.var(0).sqrt() / math.sqrt(n)
        assert ((x.mean(0) - c.alpha * mean).abs() < error).all()
        truth = c.alpha**2 * var + c.sigma**2
        assert ((x.var(0) / truth - 1).abs() < 5 * math.sqrt(4 / n)).all()


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_fields_are_posterior_averages_of_the_conditional_ones(path):
    # Row R10 of the requirements: sum over the data of p(x1 | x) times the conditional velocity and score of the path.
    rows = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1), dtype=D64)
    law = FiniteData(rows, path=path)
    x = points(law)
    c = path.coefficients(T)
    gap = x[:, None] - c.alpha[:, None, None, None] * rows
    p = (-gap.square().sum((2, 3)) / (2 * c.sigma[:, None] ** 2)).softmax(1)
    for field in ("velocity", "score"):
        conditional = getattr(path, f"conditional_{field}")
        parts = torch.stack([conditional(x, T, x1=row.expand_as(x)) for row in rows], 1)
        average = (p[:, :, None, None] * parts).sum(1)
        torch.testing.assert_close(getattr(law, field)(x, T), average, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 4, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_dtype(shape, dtype):
    rows = torch.randn(6, *shape, dtype=dtype)
    t = torch.rand(4).clamp(0.01, 0.99)
    d = rows[0].numel()
    for law in (
        FiniteData(rows),
        GaussianMixture(rows, 0.1),
        GaussianMixture(rows, covariances=torch.eye(d).expand(6, d, d)),
    ):
        x = law.sample(4, t)
        assert x.dtype == dtype and law.log_prob(x, t).shape == (4,) and law.log_prob(x, t).dtype == dtype
        for field in (law.velocity, law.score, law.data, law.noise):
            value = field(x, t)
            assert value.shape == x.shape and value.dtype == dtype and value.isfinite().all()


def test_single_precision_input_costs_only_its_rounding():
    rows = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.5, 0.9, 0.99, 0.999])
    law = FiniteData(rows)
    x = law.sample(4, t, torch.Generator().manual_seed(0))
    exact = FiniteData(rows.double()).velocity(x.double(), t.double())
    torch.testing.assert_close(law.velocity(x, t).double(), exact, rtol=1e-6, atol=1e-6)


def test_finite_data_is_the_mixture_of_no_width():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=D64)
    law = FiniteData(rows)
    x = points(law)
    for std in (1e-3, 1e-5):
        narrow = GaussianMixture(rows, std)
        for field in ("velocity", "score", "data", "log_prob"):
            gap = (getattr(law, field)(x, T) - getattr(narrow, field)(x, T)).abs()
            assert (gap / (1 + getattr(law, field)(x, T).abs())).max() < 3e3 * std**2 + 1e-9


@pytest.mark.parametrize("path", [AffinePath(), AffinePath(BetaLinear()), AffinePath(Cosine())], ids=repr)
@pytest.mark.parametrize("chunk", [1, 3, 7, 8])
def test_chunks_do_not_matter(path, chunk):
    rows = 5 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=D64)
    pairs = [
        (FiniteData(rows, path=path), FiniteData(rows, path=path, chunk=chunk)),
        (GaussianMixture(rows, 0.1, path=path), GaussianMixture(rows, 0.1, path=path, chunk=chunk)),
    ]
    for whole, parts in pairs:
        x = points(whole)
        for field in ("velocity", "score", "data", "log_prob"):
            one, two = getattr(whole, field)(x, T), getattr(parts, field)(x, T)
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made anew."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given, self.size = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != self.given:
            self.size = max(self.size, out.untyped_storage().nbytes())
        return out


def test_memory_is_bounded_by_the_chunk():
    rows, x = torch.randn(5000, 64), torch.randn(16, 64)
    law = FiniteData(rows, chunk=100)
    with Largest(rows) as largest:
        law.velocity(x, torch.full((16,), 0.5))
    assert largest.size == 8 * 100 * 64  # a chunk of rows in float64; all of them would be 50 times more


def test_one_gaussian_flows_by_its_closed_map():
    # N(m, s^2) from noise z: x_1 = m + s z on every path, since p_t is Gaussian and the flow is linear.
    for schedule in (CondOT(), Trigonometric(), Polynomial(2)):
        law = GaussianMixture(torch.tensor([[1.0, -2]], dtype=D64), 0.5, path=AffinePath(schedule))
        z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=D64)
        torch.testing.assert_close(
            rk4(law.velocity, z, 0, 1, 100), torch.tensor([1.0, -2]) + 0.5 * z, rtol=0, atol=1e-6
        )


def test_the_ideal_sampler_of_finite_data_returns_its_rows():
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=D64)
    law = FiniteData(rows)
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(1), dtype=D64)
    t = torch.full((200,), 0.999, dtype=D64)
    x1 = law.data(rk4(law.velocity, z, 0, 0.999, 200), t)
    nearest, which = torch.cdist(x1, rows).min(1)
    assert nearest.max() < 1e-6 and len(which.unique()) > 20


def test_the_ends():
    x, (zero, one) = torch.randn(5, 2, dtype=D64), (torch.zeros(5, dtype=D64), torch.ones(5, dtype=D64))
    for law in laws(AffinePath()).values():
        torch.testing.assert_close(law.score(x, zero), -x, rtol=1e-12, atol=1e-12)
        w = covariances(law)[1]
        torch.testing.assert_close(law.data(x, zero), ((w / w.sum()) @ MEANS).expand(5, 2), rtol=1e-12, atol=1e-12)
    for law in (laws(AffinePath())["isotropic"], laws(AffinePath())["full"]):
        torch.testing.assert_close(law.data(x, one), x, rtol=1e-9, atol=1e-9)
        assert law.velocity(x, one).isfinite().all() and law.score(x, one).isfinite().all()


def test_without_noise_finite_data_has_its_nearest_row_and_no_more():
    law, one = FiniteData(MEANS), torch.ones(3, dtype=D64)
    x = torch.tensor([[1.9, 0.3], [-3, 3], [0, -2]], dtype=D64)
    assert torch.equal(law.data(x, one), MEANS)
    for field in (law.velocity, law.score, law.log_prob, law.noise):
        with pytest.raises(UserError, match=r"finite data has no density where sigma = 0.*stay at t <= 0\.999"):
            field(x, one)
    jittered = FiniteData(MEANS, path=AffinePath(sigma_min=0.1))
    assert jittered.score(x, one).isfinite().all()


@pytest.mark.parametrize(("schedule", "t"), [(VariancePreserving(), 0.0), (BetaLinear(), 1.0), (Cosine(), 1.0)])
def test_infinite_derivatives_are_refused(schedule, t):
    law = GaussianMixture(MEANS, 0.5, path=AffinePath(schedule))
    x, times = torch.zeros(1, 2, dtype=D64), torch.tensor([t])
    with pytest.raises(UserError, match=r"has infinite derivatives there; stay 0\.001, say, away"):
        law.velocity(x, times)
    assert law.score(x, times).isfinite().all() and law.log_prob(x, times).isfinite().all()


def test_draws_come_from_the_generator_alone():
    for law in laws(AffinePath(sigma_min=0.1)).values():
        before = torch.random.get_rng_state()
        for make in (lambda: CounterRng(3, 1, 6), lambda: torch.Generator().manual_seed(0)):
            assert torch.equal(law.sample(6, 0.4, make()), law.sample(6, 0.4, make()))
        assert torch.equal(before, torch.random.get_rng_state())
        parts = [law.sample(n, 0.4, CounterRng(3, 1, n, start=s, total=6)) for s, n in ((0, 2), (2, 4))]
        assert torch.equal(torch.cat(parts), law.sample(6, 0.4, CounterRng(3, 1, 6)))


def test_mistakes_are_named():
    law, x, t = FiniteData(MEANS), torch.zeros(4, 2), torch.full((4,), 0.5)
    cases = [
        (lambda: law.score(x[:, :1], t), r"x must have shape \(B, 2\), got \(4, 1\)"),
        (lambda: law.score(x, t[:1]), r"t must have shape \(4,\), one time a sample, got \(1,\)"),
        (lambda: law.score(x, t + 1), r"t must lie in \[0, 1\]"),
        (lambda: law.data(x, t * math.nan), r"t must lie in \[0, 1\]"),
        (lambda: law.score(x.to("meta"), t), "x, t and the law must be on one device"),
        (lambda: FiniteData(MEANS[0]), r"FiniteData\.x must be a floating tensor \(N, \*S\)"),
        (lambda: FiniteData(MEANS.long()), r"FiniteData\.x must be a floating tensor"),
        (lambda: FiniteData(MEANS[:0]), "with a row at least"),
        (lambda: FiniteData(MEANS, chunk=0), "chunk must be at least 1, got 0"),
        (lambda: FiniteData(MEANS, path=AffinePath(gaussian_source=False)), "exact marginals need a Gaussian source"),
        (lambda: GaussianMixture(MEANS), "needs either stds or covariances"),
        (lambda: GaussianMixture(MEANS, 1.0, covariances=COVARIANCES), "needs either stds or covariances"),
        (lambda: GaussianMixture(MEANS, 0.0), r"stds must be > 0, got 0\.0; for points use FiniteData"),
        (lambda: GaussianMixture(MEANS, torch.ones(2)), r"stds must be one number or \(3,\), got shape \(2,\)"),
        (lambda: GaussianMixture(MEANS, 1.0, torch.ones(2)), r"weights must be \(3,\) numbers > 0"),
        (lambda: GaussianMixture(MEANS, 1.0, torch.tensor([1, -1, 1])), r"weights must be \(3,\) numbers > 0"),
        (lambda: GaussianMixture(MEANS, covariances=COVARIANCES[:2]), r"covariances must have shape \(3, 2, 2\)"),
        (lambda: GaussianMixture(MEANS, covariances=-COVARIANCES), "symmetric and positive definite"),
        (lambda: GaussianMixture(MEANS, covariances=ROOTS), "symmetric and positive definite"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
