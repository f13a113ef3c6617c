"""FlowPosterior given series and images, whose features are learned."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import advect
from advect import FlowPosterior, UserError

STEPS = np.arange(8)
DESIGN = np.stack([np.ones(8), (STEPS - 3.5) / 4], 1)
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


def series(theta: np.ndarray, seed: int) -> np.ndarray:
    """Noisy lines (n, 8, 1) of level and slope."""
    return (theta @ DESIGN.T + np.random.default_rng(seed).standard_normal((len(theta), 8)))[:, :, None]


def exact(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Log posterior densities (n,) under N(0, I): by the sufficient statistic x A."""
    covariance = np.linalg.inv(np.eye(2) + DESIGN.T @ DESIGN)
    rest = theta - x[:, :, 0] @ DESIGN @ covariance
    inner = np.einsum("ni,ij,nj->n", rest, np.linalg.inv(covariance), rest)
    return -0.5 * inner - 0.5 * np.log(np.linalg.det(2 * np.pi * covariance))


def test_a_network_of_series_finds_the_sufficient_statistic():
    rng = np.random.default_rng(0)
    theta, held_out = rng.standard_normal((2500, 2)), rng.standard_normal((300, 2))
    net = advect.networks.SequenceTransformer((8, 1), width=16, depth=1, heads=2)
    x, x_new = series(theta, 1), series(held_out, 2)
    learned = FlowPosterior(**FAST, embedding=net).fit(theta, x)
    known = FlowPosterior(**FAST).fit(theta, x[:, :, 0] @ DESIGN)
    truth = exact(held_out, x_new)
    loss = (truth - learned.log_prob(held_out, x_new)).mean()
    of_statistic = (truth - known.log_prob(held_out, x_new[:, :, 0] @ DESIGN)).mean()
    assert of_statistic < 0.1 and loss < of_statistic + 0.05  # nats
    assert all(p.grad is None for p in net.parameters())  # a copy was trained
    again, one = pickle.loads(pickle.dumps(learned)), x_new[0]
    assert np.array_equal(again.sample(one, 50), learned.sample(one, 50))
    assert np.array_equal(again.log_prob(held_out, one), learned.log_prob(held_out, one))
    assert learned.sample(x_new[:3], 5).shape == (3, 5, 2)


@pytest.mark.parametrize(
    ("shape", "embedding", "kind"),
    [
        ((6, 2), "auto", "SequenceTransformer"),
        ((1, 6, 6), "auto", "UNet"),
        ((2, 5, 3), "auto", "UNet"),
        ((1, 4, 4), "dit", "DiT"),
        ((7,), "mlp", "MLP"),
        ((7,), "auto", None),
        ((6, 2), None, None),
    ],
)
def test_networks_by_name_take_observations_of_their_shape(shape, embedding, kind):
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((40, 1))
    x = theta.reshape(40, *[1] * len(shape)) + 0.1 * rng.standard_normal((40, *shape))
    model = FlowPosterior(**FAST | {"steps": 5}, embedding=embedding).fit(theta, x)
    found = {type(module).__name__ for module in model.flow_.net.modules()}
    assert "Encoder" in found if kind else "Encoder" not in found
    assert kind is None or kind in found
    assert np.isfinite(model.sample(x[:2], 4)).all()
    assert np.array_equal(model.sample(x[0], 4), clone(model).fit(theta, x).sample(x[0], 4))


def test_modules_are_kept_as_arguments():
    model = FlowPosterior(embedding=nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    assert isinstance(clone(model).get_params()["embedding"], nn.Sequential)


def test_unusable_embeddings_are_refused_in_a_sentence():
    rng = np.random.default_rng(0)
    theta, x = rng.standard_normal((40, 1)), rng.standard_normal((40, 6, 2))

    def refused(words, embedding, x=x):
        with pytest.raises(UserError, match=words):
            FlowPosterior(**FAST, embedding=embedding).fit(theta, x)

    refused("embedding 'transfomer' is not known.*transformer", "transfomer")
    refused(r"embedding 'unet' takes images, and an observation has shape \(6, 2\)", "unet")
    refused("embedding must be 'auto', a network's name, a module or None, got 3", 3)
    refused(r"the embedding takes no x of shape \(B, 6, 2\)", nn.Linear(3, 2))
    refused(r"must give features \(B, k\)", lambda_module(lambda x: x.sum()))
    refused("takes images, and an observation has shape", "dit", x=rng.standard_normal((40, 2, 3, 4, 5)))


def lambda_module(function) -> nn.Module:
    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    return Module()
