"""Priors: bijections against numerical derivatives, densities against torch and SciPy, draws inside the support."""

import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as laws

from advect import UserError
from advect.sklearn.prior_laws import prior_of

t = torch.tensor
MIXTURE = laws.MixtureSameFamily(laws.Categorical(t([0.3, 0.7])), laws.Gamma(t([2.0, 9.0]), t([1.0, 2.0])))
PRIORS = {
    "uniform": ((np.array([-1.0, 5.0]), np.array([2.0, 5.5])), 2),
    "box": (laws.Independent(laws.Uniform(t([-3.0, 0.0]), t([3.0, 1e-3])), 1), 2),
    "normal": (laws.Normal(t([1.0, -4.0]), t([0.1, 3.0])), 2),
    "correlated": (laws.MultivariateNormal(t([1.0, 2.0]), t([[2.0, 0.9], [0.9, 1.0]])), 2),
    "lognormal": (laws.LogNormal(t([0.0, -3.0, 1.0]), t([0.5, 1.0, 0.1])), 3),
    "gamma": (laws.Gamma(t([0.7, 3.0]), t([2.0, 0.5])), 2),
    "beta": (laws.Beta(t([0.5, 2.0]), t([0.5, 7.0])), 2),
    "student": (laws.StudentT(t([3.0]), t([1.0]), t([2.0])), 1),
    "inverse gamma": (laws.InverseGamma(t([3.0]), t([2.0])), 1),
    "half normal": (laws.HalfNormal(t([2.0])), 1),
    "dirichlet": (laws.Dirichlet(t([0.6, 1.0, 5.0])), 3),
    "mixture": (MIXTURE, 1),
    "product": ([laws.Uniform(0.0, 2.0), laws.Dirichlet(t([1.0, 2.0])), MIXTURE], 4),
    "half line": ((np.array([2.0, -np.inf, -np.inf, 0.0]), np.array([np.inf, 1.0, np.inf, 3.0])), 4),
    "positive": ("positive", 2),
    "simplex": ("simplex", 4),
    "reals": (None, 2),
}
WITH_LAW = [name for name, (prior, _) in PRIORS.items() if prior_of(prior, PRIORS[name][1]).law]


def latents(size: int, n: int = 50, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(0).standard_normal((n, size))


@pytest.mark.parametrize("name", PRIORS)
def test_bijection_is_its_inverse_and_has_the_determinant_of_its_derivative(name):
    prior = prior_of(*PRIORS[name])
    z = latents(prior.latent, scale=0.8)
    theta = prior.to_theta(z)
    back, log_det = prior.to_latent(theta)
    assert prior.contains(theta).all() and np.allclose(back, z, atol=1e-6)
    step, columns = 1e-5, []
    for i in range(prior.latent):
        move = step * np.eye(prior.latent)[i]
        columns.append((prior.to_theta(z + move) - prior.to_theta(z - move)) / (2 * step))
    jacobian = np.stack(columns, 2)  # (n, D, d)
    rows = [i for i in range(prior.size) if i not in _dependent(name)]
    numeric = -np.linalg.slogdet(jacobian[:, rows])[1]
    assert np.allclose(log_det, numeric, atol=1e-4)


def _dependent(name: str) -> list[int]:
    """Parameters that follow from others: the last of a simplex."""
    return {"dirichlet": [2], "simplex": [3], "product": [2]}.get(name, [])


@pytest.mark.parametrize("name", PRIORS)
def test_no_latent_however_far_leaves_the_support(name):
    prior = prior_of(*PRIORS[name])
    for scale in (1.0, 5.0, 40.0, 1e4):
        theta = prior.to_theta(latents(prior.latent, 10**4, scale))
        assert np.isfinite(theta).all() and prior.contains(theta).all()
    ends = prior.to_theta(np.array([np.full(prior.latent, end) for end in (-np.inf, np.inf, 300.0)]))
    assert prior.contains(ends).all() and np.isfinite(prior.to_latent(ends)[0]).all()


@pytest.mark.parametrize("name", [n for n in WITH_LAW if n not in ("uniform", "product")])
def test_density_is_that_of_torch(name):
    law, size = PRIORS[name]
    prior = prior_of(law, size)
    theta = prior.sample(200, seed=3)
    own = law.log_prob(torch.from_numpy(theta) if name != "mixture" else torch.from_numpy(theta[:, 0]))
    own = own.reshape(len(theta), -1).sum(1)
    assert np.allclose(prior.log_prob(theta), own.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ["box", "lognormal", "gamma", "beta", "student", "mixture"])
def test_draws_follow_the_law(name):
    law, size = PRIORS[name]
    mine = prior_of(law, size).sample(4000, seed=1)
    torch.manual_seed(0)
    theirs = law.sample((4000,)).reshape(4000, -1).numpy()
    assert min(stats.ks_2samp(a, b).pvalue for a, b in zip(mine.T, theirs.T, strict=True)) > 1e-3


def test_dirichlet_draws_have_its_moments():
    law = laws.Dirichlet(t([0.6, 1.0, 5.0]))
    theta = prior_of(law, 3).sample(20_000, seed=0)
    assert np.allclose(theta.mean(0), law.mean.numpy(), atol=0.005)
    assert np.allclose(theta.var(0), law.variance.numpy(), atol=0.002)


@pytest.mark.parametrize("name", WITH_LAW)
def test_draws_depend_on_the_seed_alone_and_leave_the_global_generator(name):
    prior = prior_of(*PRIORS[name])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = prior.sample(20, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert np.array_equal(first, pickle.loads(pickle.dumps(prior)).sample(20, seed=7))
    assert not np.array_equal(first, prior.sample(20, seed=8))


def test_edges_of_the_support_belong_to_it_and_have_finite_latents():
    prior = prior_of((-1.0, 2.0), 2)
    z, log_det = prior.to_latent(np.array([[-1.0, 2.0]]))
    assert np.isfinite(z).all() and np.isfinite(log_det).all() and prior.contains(np.array([[-1.0, 2.0]])).all()
    assert prior.log_prob(np.array([[0.0, 0.0], [0.0, 2.1]])).tolist() == [pytest.approx(-2 * np.log(3)), -np.inf]


@pytest.mark.parametrize(
    ("prior", "size", "words"),
    [
        ("cube", 2, "not known"),
        ((2.0, 1.0), 2, "low < high"),
        ((1.0, 1.0), 2, "low < high"),
        (("a", "b"), 2, "two numbers or arrays"),
        (laws.Poisson(t([1.0])), 1, "whole numbers"),
        (laws.Normal(t([0.0]), t([1.0])), 2, "has 1 parameters, and theta has 2"),
        (laws.VonMises(t([0.0]), t([1.0])), 1, "no law of a vector"),
        (laws.Wishart(torch.tensor(3.0), torch.eye(2)), 4, "no law of a vector"),
        (3, 2, "must be a torch distribution"),
        ("simplex", 1, "at least 2"),
        ("positive", None, "without samples"),
    ],
)
def test_unusable_priors_are_refused(prior, size, words):
    with pytest.raises(UserError, match=words):
        prior_of(prior, size)


@pytest.mark.parametrize("name", ["positive", "simplex", "reals", "half line"])
def test_supports_alone_have_no_samples(name):
    prior = prior_of(*PRIORS[name])
    with pytest.raises(UserError, match="without samples"):
        prior.sample(3, seed=0)
    with pytest.raises(UserError, match="without a density"):
        prior.log_prob(np.full((1, prior.size), 1 / prior.size))
