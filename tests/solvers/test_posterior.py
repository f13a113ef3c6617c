"""Posterior sampling with the exact denoiser against exact posteriors, and measurements against their adjoints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.metrics.mmd import energy_with_error
from advect.paths import AffinePath, CondOT, Schedule
from advect.paths.analytic import GaussianMixture
from advect.solvers.posterior import (
    Blur,
    ColumnSums,
    Differentiable,
    Downsample,
    Linear,
    Masked,
    Measurement,
    Observation,
    PosteriorMethod,
    Reward,
    Through,
    conjugate_gradients,
    denoiser_of,
    get_posterior,
    posterior_sample,
)

N = 2000
MATRIX = torch.tensor([[1.0, 0.5, -0.5], [0.0, 1.0, 1.0]])
MASK = torch.tensor([True, False, False])
COVARIANCE = torch.tensor([[[1.5, 0.6, 0.0], [0.6, 0.8, -0.3], [0.0, -0.3, 0.5]]], dtype=torch.float64)
GAUSSIAN = GaussianMixture(torch.tensor([[1.0, -0.5, 0.0]]), covariances=COVARIANCE)
MIXTURE = GaussianMixture(
    torch.tensor([[1.5, 1.0, 0.0], [-1.0, 0.5, 1.0], [0.0, -1.5, -1.0]]), stds=0.4, weights=torch.tensor([2.0, 1, 1])
)


def observed(a: Measurement, y: Tensor, noise: float, n: int = N, shape: tuple[int, ...] = (3,)) -> Observation:
    return Observation.of(a, y, noise, n, shape, torch.device("cpu"))


def draw(
    law: GaussianMixture, ask: Observation | Reward, method: str | PosteriorMethod, seed: int = 0, **how
) -> Tensor:
    rng = CounterRng(seed, 0, N)
    x0 = rng.normal((N, *law.shape))
    return posterior_sample(law.data, x0, ask, method=method, schedule=law.path.schedule, generator=rng, **how)


def part(name: str, **options) -> PosteriorMethod:
    return registry.get("posterior", name)(**options)


def assert_moments(x: Tensor, law: GaussianMixture) -> None:
    """Mean and covariance of draws of a Gaussian, within 4.5 standard errors."""
    assert law.covariances is not None
    mean, cov = law.means[0].double(), law.covariances[0]
    assert ((x.double().mean(0) - mean).abs() < 4.5 * (cov.diagonal() / len(x)).sqrt() + 1e-6).all()
    error = ((cov.square() + cov.diagonal()[:, None] * cov.diagonal()) / len(x)).sqrt()
    assert ((x.double().T.cov() - cov).abs() < 4.5 * error + 2e-3).all()


def energy(x: Tensor, law: GaussianMixture) -> float:
    return energy_with_error(x, law.draw(2000, torch.Generator().manual_seed(7)))[0]


IMAGE, SERIES = (2, 8, 8), (12, 3)
LINEAR = [
    (Linear(MATRIX), (3,)),
    (Linear(MATRIX.to_sparse()), (3,)),
    (Linear(lambda x: x.cumsum(1)), (5,)),
    (Linear(lambda x: 2 * x, lambda v: 2 * v), (5,)),
    (Masked(MASK), (3,)),
    (Blur(0.8), IMAGE),
    (Downsample(2), IMAGE),
    (Downsample(4), SERIES),
    (ColumnSums([[0, 1], [1, 3, 4]]), (5,)),
]


class TestMeasurements:
    @pytest.mark.parametrize(("a", "shape"), LINEAR, ids=lambda v: type(v).__name__)
    def test_the_adjoint_is_the_transpose_and_the_derivative_the_map(self, a, shape) -> None:
        g = torch.Generator().manual_seed(0)
        x, u = torch.randn(2, 4, *shape, generator=g)
        near = a.near(x)
        v = torch.randn(near.value.shape, generator=g)
        torch.testing.assert_close((a(x) * v).sum(), (x * near.pull(v)).sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(near.push(u), a(u), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a(2 * x + u), 2 * a(x) + a(u), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "a", [Differentiable(lambda x: x[:, :2] ** 2 * x[:, 1:]), Through(Linear(MATRIX), torch.exp)]
    )
    def test_a_nonlinear_one_has_the_derivative_of_differences(self, a) -> None:
        x, u = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        near = a.near(x)
        v = torch.randn(near.value.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(near.push(u), (a(x + 1e-6 * u) - a(x - 1e-6 * u)) / 2e-6, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close((near.push(u) * v).sum(), (u * near.pull(v)).sum())

    def test_values(self) -> None:
        x = torch.arange(16.0).reshape(1, 1, 4, 4)
        assert Downsample(2)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
        assert ColumnSums([[0, 2], [1]])(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[5.0, 2.0]]
        torch.testing.assert_close(Blur(1.5)(torch.full((1, 3, 5, 7), 2.0)), torch.full((1, 3, 5, 7), 2.0))

    def test_conjugate_gradients_solve_each_row(self) -> None:
        g = torch.Generator().manual_seed(0)
        root, b = (
            torch.randn(3, 4, 4, dtype=torch.float64, generator=g),
            torch.randn(3, 4, dtype=torch.float64, generator=g),
        )
        b[1] = 0
        matrix = root @ root.mT + 0.1 * torch.eye(4)
        found = conjugate_gradients(lambda v: (matrix @ v[:, :, None])[:, :, 0], b, 20, 1e-12)
        torch.testing.assert_close(found, torch.linalg.solve(matrix, b))
        assert not conjugate_gradients(lambda v: -v, b, 5).any()


SCHEDULES = [s for s in (registry.get("path", n) for n in registry.choices("path")) if issubclass(s, Schedule)]


class TestExact:
    @pytest.mark.parametrize(("a", "matrix"), [(Linear(MATRIX), MATRIX), (Masked(MASK), torch.eye(3)[MASK])])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_moment_matching_is_exact_for_gaussian_data(self, a, matrix, eta) -> None:
        y = torch.tensor([0.7, -1.0])[: len(matrix)]
        ask = observed(a, y if isinstance(a, Linear) else torch.where(MASK, y[0], torch.nan), 0.3)
        assert_moments(draw(GAUSSIAN, ask, part("mmps", eta=eta), steps=100), GAUSSIAN.given(matrix, y, 0.3))

    @pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.part_name)
    def test_on_every_schedule(self, schedule) -> None:
        law = GaussianMixture(GAUSSIAN.means, covariances=COVARIANCE, path=AffinePath(schedule()))
        y = torch.tensor([0.7, -1.0])
        assert_moments(draw(law, observed(Linear(MATRIX), y, 0.3), "mmps", steps=100), law.given(MATRIX, y, 0.3))

    def test_pseudoinverse_guidance_is_exact_for_isotropic_gaussian_data_of_its_deviation(self) -> None:
        for std in (1.0, 0.5):
            law = GaussianMixture(torch.tensor([[1.0, 0.0, -1.0]]), stds=std)
            y = torch.tensor([0.7, -1.0])
            x = draw(law, observed(Linear(MATRIX), y, 0.3), part("pigdm", data_std=std), steps=100)
            assert_moments(x, law.given(MATRIX, y, 0.3))

    def test_a_linear_reward_shifts_gaussian_data_by_its_covariance(self) -> None:
        b = torch.tensor([0.5, -1.0, 0.0])
        x = draw(GAUSSIAN, Reward(lambda x: x @ b), "reward", steps=100)
        tilted = GaussianMixture(GAUSSIAN.means + (COVARIANCE[0] @ b.double()).float(), covariances=COVARIANCE)
        assert_moments(x, tilted)

    def test_without_noise_samples_agree_with_y(self) -> None:
        y = torch.tensor([0.7, -1.0])
        for name in ("mmps", "pigdm"):
            x = draw(GAUSSIAN, observed(Linear(MATRIX), y, 0.0), name)
            torch.testing.assert_close(x @ MATRIX.T, y.expand(N, 2), rtol=0, atol=2e-2)

    def test_a_nonlinear_measurement_bends_samples_to_it(self) -> None:
        radius = Differentiable(lambda x: x[:, :2].square().sum(1, keepdim=True))
        for name in ("dps", "pigdm", "mmps"):
            x = draw(GAUSSIAN, observed(radius, torch.tensor([4.0]), 0.2), name, steps=100)
            assert abs(radius(x).mean() - 4) < 0.3 and radius(x).std() < 0.5


class TestBiases:
    """On a mixture of three Gaussians; y is the exact posterior's own, and the floor of the distance is 0."""

    Y, NOISE = torch.tensor([0.3, 0.2]), 0.3

    def distance(self, method: PosteriorMethod) -> float:
        x = draw(MIXTURE, observed(Linear(MATRIX), self.Y, self.NOISE), method)
        return energy(x, MIXTURE.given(MATRIX, self.Y, self.NOISE))

    def test_all_are_far_nearer_than_the_prior(self) -> None:
        prior = energy(MIXTURE.draw(N, torch.Generator().manual_seed(1)), MIXTURE.given(MATRIX, self.Y, self.NOISE))
        for name in ("dps", "pigdm", "mmps"):
            assert self.distance(part(name)) < prior / 4

    def test_dps_spreads_too_little(self) -> None:
        law = GaussianMixture(torch.zeros(1, 3), stds=1.0)
        y = torch.tensor([0.7, -1.0])
        x, exact = draw(law, observed(Linear(MATRIX), y, 0.5), "dps"), law.given(MATRIX, y, 0.5)
        assert exact.covariances is not None
        along = lambda cov: torch.trace(MATRIX.double() @ cov @ MATRIX.double().T)
        assert along(x.double().T.cov()) < 0.8 * along(exact.covariances[0])

    def test_repaint_comes_nearer_with_more_resamples(self) -> None:
        y, law = torch.tensor([0.4]), GaussianMixture(MIXTURE.means, stds=0.7, weights=MIXTURE.weights)
        exact = law.given(torch.eye(3)[MASK], y, 1e-3)
        ask = observed(Masked(MASK), torch.where(MASK, y[0], torch.nan), 0.0)
        one, few, many = (energy(draw(law, ask, part("repaint", resamples=r), steps=40), exact) for r in (1, 4, 12))
        assert one > 1.3 * few and few > 1.3 * many


def test_repaint_keeps_known_elements_exactly_and_noisy_ones_by_their_noise() -> None:
    y = torch.tensor([0.4, 0.0, 0.0])
    x = draw(GAUSSIAN, observed(Masked(MASK), y, 0.0), "repaint", steps=40)
    assert (x[:, 0] == y[0]).all()
    x = draw(GAUSSIAN, observed(Masked(MASK), y, 0.5), "repaint", steps=100)
    exact = GAUSSIAN.given(torch.eye(3)[MASK], y[:1], 0.5)
    assert energy(x, exact) < 0.02


def test_steps_of_repaint_are_counted() -> None:
    method, calls = part("repaint", resamples=3, jump=4), []
    denoiser = lambda x, t: (calls.append(t), GAUSSIAN.data(x, t))[1]
    posterior_sample(
        denoiser, torch.randn(2, 3), observed(Masked(MASK), torch.zeros(3), 0.0, 2), method=method, steps=10
    )
    assert len(calls) == method.nfe(10) == 4 + 3 * 6


def test_a_denoiser_of_a_velocity_is_the_conditional_mean() -> None:
    x, t = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 50)
    torch.testing.assert_close(denoiser_of(MIXTURE.velocity, CondOT())(x, t), MIXTURE.data(x, t), rtol=1e-4, atol=1e-4)


def test_the_posterior_of_a_mixture_is_that_of_importance_weights() -> None:
    y, noise = torch.tensor([0.3, 0.2]), 0.5
    x = MIXTURE.draw(400_000, torch.Generator().manual_seed(0)).double()
    weights = (-(y - x @ MATRIX.double().T).square().sum(1) / (2 * noise**2)).softmax(0)
    exact = MIXTURE.given(MATRIX, y, noise).draw(200_000, torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(weights @ x, exact.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(weights @ x.square(), exact.square().mean(0), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: observed(Linear(MATRIX), torch.zeros(3), 0.1), r"y must have the shape of A\(x\), \(2,\)"),
        (lambda: observed(Linear(MATRIX), torch.zeros(2), -0.1), "noise .* must be >= 0, got -0.1"),
        (lambda: observed(Linear(MATRIX), torch.tensor([0, torch.nan]), 0.1), "y must be finite"),
        (lambda: observed(Linear(MATRIX), torch.zeros(2), 0.1, shape=(4,)), "a sample has 4 elements"),
        (lambda: observed(Differentiable(torch.round), torch.zeros(3), 0.1), "does not change with x"),
        (lambda: observed(Differentiable(lambda x: x.detach()), torch.zeros(3), 0.1), "no gradient in x"),
        (lambda: observed(Differentiable(lambda x: x.sum()), torch.zeros(()), 0.1), r"\(B, \*S\) to \(B, \*M\)"),
        (lambda: observed(Masked(torch.zeros(3, dtype=torch.bool)), torch.zeros(3), 0.1), "does not change with x"),
        (lambda: Masked(torch.ones(3)), "truth values"),
        (lambda: Downsample(3)(torch.zeros(1, 1, 8, 8)), "factor is 3, which must divide"),
        (lambda: ColumnSums([[0, 9]])(torch.zeros(1, 3)), "names column 9"),
        (lambda: Blur(-1.0), "std must be above 0"),
        (lambda: get_posterior("mmp"), "did you mean 'mmps'"),
        (
            lambda: draw(MIXTURE, observed(Linear(MATRIX), torch.zeros(2), 0.1), "repaint"),
            "takes known elements alone",
        ),
        (
            lambda: draw(MIXTURE, observed(Linear(MATRIX), torch.zeros(2), 0.1), "reward"),
            "takes no observation",
        ),
        (lambda: draw(MIXTURE, Reward(lambda x: x.sum()), "reward"), "one number a sample"),
        (lambda: draw(MIXTURE, Reward(lambda x: x.sum(1)), "mmps"), "takes no reward"),
    ],
)
def test_bad_input(call, message) -> None:
    with pytest.raises(UserError, match=message):
        call()
