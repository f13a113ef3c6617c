"""Posteriors of FlowPosterior on tasks of the simulation-based inference benchmark, against its reference posteriors.

The tasks are those of Lueckmann et al. 2021 ("Benchmarking simulation-based inference"), appendix T, written anew
here: two moons, Gaussian linear, Gaussian linear with a uniform prior, Gaussian mixture, SLCP, Bernoulli GLM and SIR.
Observations and 10,000 draws of each reference posterior are read from the folder given, as its package ships them
(``TASK/files/num_observation_K/observation.csv`` and ``reference_posterior_samples.csv.bz2``).

The measure is the paper's: the accuracy of a classifier that tells 10,000 draws from as many of the reference, a
perceptron of two hidden layers of 10 D units, on held-out fifths, after scaling by the reference's moments; 0.5 is
perfect. One line a task: the mean over its observations, each of them, and the minutes of fitting and sampling.

    python bench/sbibm.py FOLDER --simulations 10000 --seed 0 >> table.md
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import distributions as law

import advect

Rng = np.random.Generator


class Task(ABC):
    """A prior and a simulator x (n, d) of theta (n, D)."""

    name: str
    prior: Any

    @abstractmethod
    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray: ...


def box(size: int, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a uniform prior."""
    return np.full(size, -bound), np.full(size, bound)


class TwoMoons(Task):
    """A crescent of radius 0.1, moved by two linear forms of theta, the sign of one of which is lost (T.8)."""

    name, prior = "two_moons", box(2, 1.0)

    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
        radius = rng.normal(0.1, 0.01, len(theta))
        crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)
        a, b = theta.T
        return crescent + np.stack([-np.abs(a + b), b - a], 1) / np.sqrt(2)


class GaussianLinear(Task):
    """N(theta, 0.1 I) under N(0, 0.1 I) (T.1)."""

    name = "gaussian_linear"
    prior = law.MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10))

    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        return rng.normal(theta, np.sqrt(0.1))


class GaussianLinearUniform(GaussianLinear):
    """The same under a uniform prior on [-1, 1] (T.2)."""

    name, prior = "gaussian_linear_uniform", box(10, 1.0)


class GaussianMixture(Task):
    """An equal mixture of N(theta, I) and N(theta, 0.01 I) (T.7)."""

    name, prior = "gaussian_mixture", box(2, 10.0)

    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        return rng.normal(theta, np.where(rng.random((len(theta), 1)) < 0.5, 1.0, 0.1))


class SLCP(Task):
    """Four draws of a Gaussian in two dimensions, whose parameters are not linear in theta (T.3)."""

    name, prior = "slcp", box(5, 3.0)

    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
        e = rng.standard_normal((len(theta), 4, 2))
        other = correlation[:, None] * e[..., 0] + np.sqrt(1 - correlation[:, None] ** 2) * e[..., 1]
        points = np.stack([first[:, None] * e[..., 0], second[:, None] * other], 2) + theta[:, None, :2]
        return points.reshape(len(theta), 8)


class BernoulliGLM(Task):
    """Spikes of a neuron driven by white noise, as their sufficient statistics (T.5)."""

    name = "bernoulli_glm"

    def __init__(self) -> None:
        size, steps = 9, 100
        difference = np.eye(size) - np.eye(size, k=-1)
        smooth = difference @ difference + np.diag(np.sqrt(np.arange(size) / size))
        precision = np.zeros((size + 1, size + 1))
        precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
        self.prior = law.MultivariateNormal(
            torch.zeros(size + 1), precision_matrix=torch.from_numpy(precision).float()
        )
        stimulus = np.random.RandomState(42).randn(steps)  # that of the reference posteriors
        delayed = [np.concatenate([np.zeros(lag), stimulus[: steps - lag]]) for lag in range(size)]
        self.design = np.stack([np.ones(steps), *delayed], 1)

    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        chance = 1 / (1 + np.exp(-theta @ self.design.T))
        return (rng.random(chance.shape) < chance) @ self.design


class SIR(Task):
    """An epidemic: ten noisy counts of the infected among a million (T.9)."""

    name = "sir"
    prior = law.Independent(law.LogNormal(torch.tensor([0.4, 0.125]).log(), torch.tensor([0.5, 0.2])), 1)

    def simulate(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        return np.stack([self._one(row, rng) for row in theta])

    def _one(self, theta: np.ndarray, rng: Rng) -> np.ndarray:
        size, (contact, recovery) = 1e6, theta
        days = np.arange(0, 161, 17)[:10]

        def change(_: float, y: np.ndarray) -> list[float]:
            new, healed = contact * y[0] * y[1] / size, recovery * y[1]
            return [-new, new - healed]

        path = solve_ivp(change, (0, 160), [size - 1, 1.0], t_eval=days, rtol=1e-6, atol=1e-3)
        return rng.binomial(1000, np.clip(path.y[1] / size, 0, 1)).astype(float)


TASKS: dict[str, type[Task]] = {
    cls.name: cls
    for cls in (TwoMoons, GaussianLinear, GaussianLinearUniform, GaussianMixture, SLCP, BernoulliGLM, SIR)
}


def reference(folder: Path, task: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """An observation (d,) and draws of its reference posterior (10,000, D)."""
    import pandas as pd

    place = folder / task / "files" / f"num_observation_{number}"
    x = pd.read_csv(place / "observation.csv").to_numpy(float)[0]
    return x, pd.read_csv(place / "reference_posterior_samples.csv.bz2").to_numpy(float)


def c2st(truth: np.ndarray, drawn: np.ndarray, seed: int = 1, folds: int = 5) -> float:
    """Held-out accuracy of a classifier of draws (n, D)."""
    mean, std = truth.mean(0), truth.std(0)
    rows = np.concatenate([(truth - mean) / std, (drawn - mean) / std])
    which = np.repeat([0, 1], [len(truth), len(drawn)])
    width = 10 * truth.shape[1]
    net = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    split = KFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(net, rows, which, cv=split).mean())


def measure(task: Task, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Classifier accuracies of a fit to new simulations, and times in minutes."""
    began = time.monotonic()
    of_sims: dict[str, Any] = {"batch_size": 1000, "seed": options.seed, "progress": False}
    theta, x, _ = advect.from_simulator(task.simulate, task.prior, options.simulations, **of_sims)
    simulated = time.monotonic()
    model = advect.FlowPosterior(random_state=options.seed, **json.loads(options.model))
    model.fit(theta, x, prior=task.prior)
    fitted, scores, sampled = time.monotonic(), [], 0.0
    for number in options.observations:
        x_obs, truth = reference(folder, task.name, number)
        start = time.monotonic()
        drawn = model.sample(x_obs, options.draws)
        sampled += time.monotonic() - start
        scores.append(c2st(truth[: options.draws], drawn, folds=options.folds))
    minutes = [(simulated - began) / 60, (fitted - simulated) / 60, sampled / 60]
    return {"scores": scores, "steps": model.n_iter_, "minutes": minutes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--observations", nargs="+", type=int, default=list(range(1, 11)))
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--model", default="{}", help="arguments of FlowPosterior, as JSON")
    options = parser.parse_args()
    print("| task | C2ST | each observation | steps | simulating | fitting | sampling, minutes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.tasks:
        found = measure(TASKS[name](), options.folder, options)
        each = " ".join(f"{score:.3f}" for score in found["scores"])
        minutes = " | ".join(f"{value:.1f}" for value in found["minutes"])
        print(f"| {name} | {np.mean(found['scores']):.3f} | {each} | {found['steps']} | {minutes} |", flush=True)


if __name__ == "__main__":
    main()
