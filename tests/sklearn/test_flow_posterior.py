"""FlowPosterior on simulators whose posterior is known, its supports, and what it refuses."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import distributions as laws

import advect
from advect import FlowPosterior, UserError

NOISE = np.array([0.5, 1.0])
FAST = {
    "steps": 400,
    "random_state": 0,
    "hidden": (64, 64),
    "density_steps": 6,
    "sample_steps": 10,
    "learning_rate": 3e-3,
    "device": "cpu",
}


def linear(theta: np.ndarray, seed: int = 1) -> np.ndarray:
    """x = theta + noise, of which under N(0, I) the posterior is N(x / (1 + s^2), s^2 / (1 + s^2))."""
    return theta + NOISE * np.random.default_rng(seed).standard_normal(theta.shape)


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviations of the posterior."""
    return x / (1 + NOISE**2), NOISE / np.sqrt(1 + NOISE**2)


def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    theta = np.random.default_rng(0).standard_normal((n, 2))
    return theta, linear(theta)


NORMAL = laws.MultivariateNormal(torch.zeros(2), torch.eye(2))


@pytest.fixture(scope="module")
def gaussian() -> FlowPosterior:
    return FlowPosterior(**FAST | {"steps": 600, "early_stopping": False}).fit(*pairs(2500), prior=NORMAL)


def two_sample(a: np.ndarray, b: np.ndarray) -> float:
    """Held-out accuracy of nearest neighbours that tell a from b; 0.5 if they cannot."""
    order = np.random.default_rng(0).permutation(len(a) + len(b))
    rows, which = np.concatenate([a, b])[order], np.repeat([0, 1], [len(a), len(b)])[order]
    return float(cross_val_score(KNeighborsClassifier(50), rows, which, cv=5).mean())


def test_posterior_of_a_linear_gaussian_cannot_be_told_from_the_exact_one(gaussian):
    x = np.array([[0.7, -0.4], [-1.0, 1.0]])
    drawn = gaussian.sample(x, 3000)
    assert drawn.shape == (2, 3000, 2) and drawn.dtype == np.float64
    mean, std = exact(x)
    truth = mean[:, None] + std * np.random.default_rng(5).standard_normal(drawn.shape)
    for mine, theirs in zip(drawn, truth, strict=True):
        assert 0.47 < two_sample((mine - theirs.mean(0)) / std, (theirs - theirs.mean(0)) / std) < 0.53


def test_density_is_normalised_and_that_of_the_exact_posterior(gaussian):
    x = np.array([0.7, -0.4])
    mean, std = exact(x)
    theta = mean + std * np.random.default_rng(3).standard_normal((500, 2))
    truth = -0.5 * (((theta - mean) / std) ** 2).sum(1) - np.log(2 * np.pi * std.prod())
    error = gaussian.log_prob(theta, x) - truth
    assert abs(error.mean()) < 0.03 and np.abs(error).mean() < 0.1
    grid = np.stack(np.meshgrid(*[np.linspace(-4, 4, 41)] * 2), -1).reshape(-1, 2)
    assert np.exp(gaussian.log_prob(grid, x)).sum() * (8 / 40) ** 2 == pytest.approx(1, abs=3e-3)


def test_densities_of_batches_are_those_of_each_observation(gaussian):
    x, theta = np.array([[0.7, -0.4], [-1.0, 1.0]]), np.random.default_rng(2).standard_normal((2, 5, 2))
    each = np.stack([gaussian.log_prob(theta[i], x[i]) for i in range(2)])
    assert np.allclose(gaussian.log_prob(theta, x), each, atol=1e-9)
    assert np.allclose(gaussian.log_prob(theta[:, 0], x), each[:, 0], atol=1e-9)
    assert gaussian.log_prob(np.zeros((0, 2)), x[0]).shape == (0,)


def test_several_observations_compose_to_the_posterior_given_all(gaussian):
    x = np.array([[0.7, -0.4], [0.2, 0.5], [0.9, 0.1]])
    precision = 1 + len(x) / NOISE**2
    mean, std = (x.sum(0) / NOISE**2) / precision, precision**-0.5
    drawn = gaussian.sample_iid(x, 2000)
    assert np.abs((drawn.mean(0) - mean) / std).max() < 0.2 and np.abs(drawn.std(0) / std - 1).max() < 0.15
    theta = mean + std * np.random.default_rng(3).standard_normal((200, 2))
    truth = -0.5 * (((theta - mean) / std) ** 2).sum(1) - np.log(2 * np.pi * std.prod())
    assert np.abs(gaussian.log_prob_iid(theta, x) - truth).mean() < 0.15
    one = gaussian.log_prob_iid(theta, x[0]) - gaussian.log_prob(theta, x[0])
    assert np.abs(one).max() < 0.1  # of one observation it is the posterior, but for the constant's error


def test_composition_needs_the_density_of_the_prior():
    model = FlowPosterior(**FAST | {"steps": 20, "early_stopping": False}).fit(*pairs(50))
    with pytest.raises(UserError, match="support alone, without a density"):
        model.sample_iid(np.zeros((2, 2)), 5)


def test_pickled_gives_the_same_numbers(gaussian):
    again, x = pickle.loads(pickle.dumps(gaussian)), np.array([0.3, 0.3])
    assert np.array_equal(again.sample(x, 20), gaussian.sample(x, 20))
    assert np.array_equal(again.log_prob(np.ones((3, 2)), x), gaussian.log_prob(np.ones((3, 2)), x))


def test_fits_repeat_and_leave_the_global_generators():
    theta, x = pairs(200)
    model = FlowPosterior(**FAST | {"steps": 60, "early_stopping": False})
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = model.fit(theta, x, prior=NORMAL).sample(x[0], 5)
    assert np.array_equal(before[0], np.random.get_state()[1]) and torch.equal(before[1], torch.get_rng_state())
    assert np.array_equal(first, clone(model).fit(torch.from_numpy(theta), x, prior=NORMAL).sample(x[0], 5))


SUPPORTS = {
    "bounded": (((-1.0, 0.0), (1.0, 1e-3)), lambda p, x: (np.abs(x[:, 0]) < 1) & (x[:, 1] > 0) & (x[:, 1] < 1e-3)),
    "positive": ("positive", lambda p, x: (x > 0).all(1)),
    "simplex": ("simplex", lambda p, x: (x > 0).all(1) & (np.abs(x.sum(1) - 1) < 1e-12)),
    "dirichlet": (laws.Dirichlet(torch.tensor([0.5, 0.7])), lambda p, x: (x > 0).all(1)),
    "gamma": (laws.Gamma(torch.tensor([0.3, 2.0]), torch.ones(2)), lambda p, x: (x > 0).all(1)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_none_of_a_hundred_thousand_draws_leaves_the_prior(name):
    prior, inside = SUPPORTS[name]
    rng = np.random.default_rng(0)
    theta = rng.dirichlet([1, 2], 300) if name in ("simplex", "dirichlet") else rng.gamma(1.0, 1.0, (300, 2))
    theta = rng.uniform(prior[0], prior[1], (300, 2)) if name == "bounded" else theta
    x = theta + 0.01 * rng.standard_normal(theta.shape) * theta.std(0)
    model = FlowPosterior(**FAST | {"steps": 30, "sample_steps": 3, "solver": "euler", "early_stopping": False})
    model.fit(theta, x, prior=prior)
    edge = theta[np.argmin(theta[:, 0])] + [0, 0]  # where much of the posterior is next to the edge
    drawn = model.sample(edge, 100_000)
    assert inside(prior, drawn).all() and np.isfinite(model.log_prob(drawn[:3], edge)).all()
    outside = np.array([[2.0, 2.0], [-3.0, -1e-3]])[1 if name in ("positive", "gamma") else 0 :]
    assert (model.log_prob(outside, edge) == -np.inf).all()


def test_posterior_against_the_edge_of_a_uniform_prior_is_the_truncated_one():
    rng = np.random.default_rng(0)
    theta = rng.uniform(0, 1, (4000, 1))
    x = theta + 0.3 * rng.standard_normal(theta.shape)
    plain = {"steps": 900, "early_stopping": False, "options": {"network": "resmlp"}}
    model = FlowPosterior(**FAST | plain).fit(theta, x, prior=(0, 1))
    grid = (np.arange(200)[:, None] + 0.5) / 200
    truth = np.exp(-0.5 * (grid[:, 0] / 0.3) ** 2)  # given x = 0 half of the likelihood lies outside
    density = np.exp(model.log_prob(grid, [0.0]))
    assert density.mean() == pytest.approx(1, abs=0.01)
    assert np.abs(density - truth / truth.mean()).mean() < 0.1


@pytest.mark.slow
def test_held_out_fifths_find_when_to_stop_a_weakly_told_posterior():
    """One held-out tenth stops at step 242, and the density at the edge is 3.51."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(0, 1, (4000, 1))
    x = theta + 0.3 * rng.standard_normal(theta.shape)
    model = FlowPosterior(**FAST | {"steps": 900, "density_steps": 20}).fit(theta, x, prior=(0, 1))
    grid = (np.arange(200)[:, None] + 0.5) / 200
    truth = np.exp(-0.5 * (grid[:, 0] / 0.3) ** 2)
    density = np.exp(model.log_prob(grid, [0.0]))
    assert density[0] == pytest.approx((truth / truth.mean())[0], rel=0.1)  # 2.66
    assert density.mean() == pytest.approx(1, abs=0.005)
    assert np.abs(density - truth / truth.mean()).mean() < 0.08
    again = pickle.loads(pickle.dumps(model))  # all six flows
    assert np.array_equal(again.log_prob(grid, [0.0]), model.log_prob(grid, [0.0]))
    assert np.array_equal(again.sample([0.0], 50), model.sample([0.0], 50))


def test_whole_numbers_are_observations_not_labels():
    rng = np.random.default_rng(0)
    theta = rng.uniform(0, 1, (600, 1))
    model = FlowPosterior(**FAST | {"early_stopping": False}).fit(theta, rng.binomial(20, theta), prior=(0, 1))
    low, high = model.sample(2, 400).mean(), model.sample([18], 400).mean()
    assert abs(low - 3 / 22) < 0.06 and abs(high - 19 / 22) < 0.06  # beta laws


def test_far_observations_warn_with_their_distance(gaussian, recwarn):
    gaussian.sample([0.0, 1.0], 2)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"1 of 2 observations are far .* standard deviations"):
        gaussian.sample([[0.0, 1.0], [40.0, 0.0]], 2)


def _refused(words, theta=None, x=None, prior=None, **arguments):
    own = pairs(50)
    with pytest.raises(UserError, match=words):
        FlowPosterior(**FAST | arguments).fit(own[0] if theta is None else theta, own[1] if x is None else x, prior)


def test_unusable_data_and_arguments_are_refused_in_a_sentence():
    theta, x = pairs(50)
    _refused("rows of theta lie outside the prior, the first is row", prior=(-0.1, 0.1))
    _refused("too few", theta[:5], x[:5])
    _refused("a simulation for each", theta, x[:5])
    _refused("theta must have shape", theta[:, :, None])
    _refused("1 rows of x hold NaN", x=np.where(np.arange(50)[:, None] == 3, np.nan, x))
    _refused("theta holds NaN", theta=np.where(np.arange(50)[:, None] == 3, np.nan, theta))
    _refused("must be numbers", x=np.full(x.shape, "a"))
    _refused("column 1 of theta is constant", theta=theta * [1, 0])
    _refused(r"arrays \(2,\)", prior=(np.zeros(3), np.ones(3)))
    _refused("the prior has 3 parameters", prior=laws.Normal(torch.zeros(3), torch.ones(3)))
    _refused("max_minutes", max_minutes=-1)
    _refused("early_stopping", early_stopping="auto")
    _refused("validation_fraction", validation_fraction=1.5)
    _refused("steps", steps=0)
    _refused("location must be 'linear' or None", location="stack")
    _refused("whiten", options={"whiten": False})


def test_unusable_observations_are_refused_in_a_sentence(gaussian):
    for bad in (np.zeros(3), np.zeros((2, 3)), 1.0, np.zeros((0, 2)), np.zeros((1, 1, 2))):
        with pytest.raises(UserError, match="x_obs must have shape"):
            gaussian.sample(bad, 2)
    with pytest.raises(UserError, match="x_obs holds NaN"):
        gaussian.sample([np.nan, 0.0], 2)
    with pytest.raises(UserError, match="theta must have shape"):
        gaussian.log_prob(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(UserError, match="n must be"):
        gaussian.sample([0.0, 0.0], 0)


def test_is_an_estimator():
    model = FlowPosterior(hidden=(8,), verbose=1)
    assert clone(model).get_params() == model.get_params() and "FlowPosterior" in dir(advect)
