"""Sequential refinement of FlowPosterior for one observation, by truncated proposals."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as laws

from advect import FlowPosterior, UserError
from advect.sklearn.prior_laws import prior_of
from advect.sklearn.rounds import DRAWS, Region, truncated_draws

FAST = {
    "steps": 300,
    "random_state": 0,
    "hidden": (64, 64),
    "density_steps": 6,
    "sample_steps": 10,
    "learning_rate": 3e-3,
    "device": "cpu",
    "early_stopping": False,
}
NORMAL = laws.MultivariateNormal(torch.zeros(2), torch.eye(2))
OBSERVED = np.array([0.9, -0.4])
ROUNDS = {"batch_size": 300, "progress": False}


class Linear:
    """x = theta + noise of deviations 0.05 and 0.1, and what it was asked to simulate."""

    noise = np.array([0.05, 0.1])

    def __init__(self):
        self.asked = []

    def __call__(self, theta, rng):
        self.asked.append(theta.copy())
        return theta + self.noise * rng.standard_normal(theta.shape)

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviations of the posterior given OBSERVED under N(0, I)."""
        return OBSERVED / (1 + self.noise**2), self.noise / np.sqrt(1 + self.noise**2)

    def missed(self, model: FlowPosterior) -> float:
        """Kullback-Leibler divergence of a posterior from the exact one, estimated, in nats."""
        mean, std = self.exact()
        theta = mean + std * np.random.default_rng(1).standard_normal((300, 2))
        return float((stats.norm(mean, std).logpdf(theta).sum(1) - model.log_prob(theta, OBSERVED)).mean())


def test_rounds_reach_the_posterior_that_one_round_of_as_many_simulations_misses():
    simulator = Linear()
    plain = FAST | {"location": None}  # which alone would tell a linear simulator
    refined = FlowPosterior(**plain).fit_rounds(simulator, NORMAL, OBSERVED, 300, 3, **ROUNDS)
    mean, std = simulator.exact()
    drawn = refined.sample(OBSERVED, 3000)
    assert np.abs((drawn.mean(0) - mean) / std).max() < 0.3 and np.abs(drawn.std(0) / std - 1).max() < 0.3
    spread = [np.ptp(theta, axis=0) for theta in simulator.asked]
    assert (spread[1] < spread[0] / 2).all() and (spread[2] < spread[0] / 4).all()
    assert (np.ptp(drawn, axis=0) < 1.2 * spread[2]).all()  # what was simulated last holds the posterior
    once = FlowPosterior(**plain).fit_rounds(simulator, NORMAL, OBSERVED, 900, 1, batch_size=900, progress=False)
    assert simulator.missed(refined) < 0.5 * simulator.missed(once) and simulator.missed(refined) < 0.15


def test_rounds_are_resumed_with_what_is_there(tmp_path):
    simulator, arguments = Linear(), FAST | {"steps": 40}
    whole = FlowPosterior(**arguments).fit_rounds(simulator, NORMAL, OBSERVED, 300, 2, folder=tmp_path, **ROUNDS)
    calls = len(simulator.asked)
    (tmp_path / "round-2" / "part-00000.npz").unlink()
    again = FlowPosterior(**arguments).fit_rounds(simulator, NORMAL, OBSERVED, 300, 2, folder=tmp_path, **ROUNDS)
    assert len(simulator.asked) == calls + 1 and np.array_equal(simulator.asked[-1], simulator.asked[1])
    assert np.array_equal(whole.sample(OBSERVED, 20), again.sample(OBSERVED, 20))
    for other in ({"seed": 1}, {"simulations": 299}, {"x_obs": OBSERVED + 1}):
        with pytest.raises(UserError, match="holds rounds of another observation"):
            FlowPosterior(**arguments).fit_rounds(
                **{"simulator": simulator, "prior": NORMAL, "x_obs": OBSERVED, "simulations": 300} | other,
                folder=tmp_path,
                **ROUNDS,
            )


def test_no_round_leaves_the_prior_and_other_observations_are_warned_of():
    simulator = Linear()
    prior = (np.zeros(2), np.ones(2))
    edge = np.array([0.01, 0.98])
    model = FlowPosterior(**FAST | {"steps": 100}).fit_rounds(
        simulator, prior, edge, 200, 3, batch_size=200, progress=False
    )
    assert len(simulator.asked) == 3
    assert all(((theta > 0) & (theta < 1)).all() for theta in simulator.asked)
    drawn = model.sample(edge, 20_000)
    assert ((drawn > 0) & (drawn < 1)).all()
    with pytest.warns(UserWarning, match="refined for one observation and is asked of another"):
        model.sample([0.1, 0.9], 2)
    theta = np.random.default_rng(0).uniform(size=(50, 2))
    model.fit(theta, theta, prior)  # for all observations again
    model.sample(theta[0], 2)


class Half:
    """A made-up posterior of one latent: N(centre, 0.1^2)."""

    def __init__(self, centre, size=1, width=0.1):
        self.law = stats.norm(centre, width)
        self.size, self.rng = size, np.random.RandomState(0)

    def log_density(self, z):
        return self.law.logpdf(z).sum(1)

    def draw(self, n):
        return self.law.rvs((n, self.size), random_state=self.rng)


@pytest.mark.parametrize(
    ("prior", "centre"),
    [
        (NORMAL, 1.0),
        (NORMAL, 30.0),  # far in the tail
        (
            laws.MixtureSameFamily(
                laws.Categorical(torch.ones(2)), laws.Normal(torch.tensor([-1.0, 1.0]), torch.ones(2))
            ),
            0.5,
        ),
    ],
)
def test_proposals_have_the_density_of_the_prior_inside_the_region(prior, centre):
    law = prior_of(prior)
    posterior = Half(centre, law.latent)
    region = Region(posterior.log_density, posterior.draw(DRAWS))
    z = truncated_draws(law, region, posterior.draw, 3000, np.random.default_rng(0))
    assert z.shape == (3000, law.latent) and region.contains(z).all()
    grid = np.stack(np.meshgrid(*[np.linspace(centre - 0.5, centre + 0.5, 161)] * law.latent), -1).reshape(
        -1, law.latent
    )
    grid = grid[region.contains(grid)]
    theta = law.to_theta(grid)
    weights = law.log_prob(theta) - law.to_latent(theta)[1]
    weights = np.exp(weights - weights.max())
    mean = weights @ grid / weights.sum()
    std = np.sqrt(weights @ (grid - mean) ** 2 / weights.sum())
    assert np.allclose(z.mean(0), mean, atol=5 * std.max() / 3000**0.5) and np.allclose(z.std(0), std, rtol=0.06)


def test_rare_regions_are_filled_by_resampling_draws_of_the_posterior():
    """Of a long thin posterior the box is nearly empty."""
    law = prior_of((np.zeros(2), np.ones(2)))
    rng = np.random.RandomState(0)

    def draw(n):
        along, across = rng.uniform(-2, 2, n), 1e-4 * rng.standard_normal(n)
        return np.stack([along + across, along - across], 1)

    region = Region(lambda z: -0.5 * ((z[:, 0] - z[:, 1]) / 2e-4) ** 2, draw(DRAWS))
    z = truncated_draws(law, region, draw, 500, np.random.default_rng(0))
    assert z.shape == (500, 2) and region.contains(z).all()
    along = z.mean(1)
    truth = stats.truncnorm(-2, 2, scale=0.5**0.5)  # the density of the prior along the diagonal, exp(-along^2)
    assert along.std() == pytest.approx(truth.std(), rel=0.15)


def test_unusable_rounds_are_refused_in_a_sentence():
    def refused(words, *arguments, **named):
        with pytest.raises(UserError, match=words):
            FlowPosterior(**FAST | {"steps": 5}).fit_rounds(Linear(), *arguments, **{"progress": False} | named)

    refused("rounds must be", NORMAL, OBSERVED, 20, 0)
    refused("simulations must be", NORMAL, OBSERVED, 0)
    refused("x_obs holds NaN", NORMAL, [np.nan, 0.0], 20)
    refused("x_obs must have shape", NORMAL, [1.0, 0.0, 0.0], 20)
    refused("x_obs must be one observation, got 2", NORMAL, np.zeros((2, 2)), 20)
    refused("support alone, without samples", (np.zeros(2), np.full(2, np.inf)), OBSERVED, 20)
    refused("workers must be", NORMAL, OBSERVED, 20, workers=0)
