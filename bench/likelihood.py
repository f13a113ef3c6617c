"""Held-out log-likelihood of FlowModel beside scikit-learn's KernelDensity and GaussianMixture, tuned.

Four data sets, each split into training and test rows anew for every seed; all three get the same rows:

- moons: ``make_moons`` with noise 0.07, 2,000 training and 2,000 test rows.
- mixture: eight Gaussians in five dimensions, of random means, covariances and shares, 2,000 and 2,000 rows, a family
  that GaussianMixture holds.
- crowd: the same with a hundred Gaussians, nearer to one another: it holds them too, but has twenty rows for each,
  as many as one has parameters.
- digits: ``load_digits``, 64 pixels of 0..16, made continuous by uniform noise on [0, 1). Four fifths of the pictures
  train, each with ``COPIES`` draws of that noise; the others test, with one draw. What is reported is the mean
  log-density of the dequantised rows, a lower bound of the log-probability of the whole numbers (Theis et al. 2016).

KernelDensity's bandwidth is chosen by the log-likelihood of a fifth of the training pictures or rows, on a grid of 16,
per-feature scaling by the deviation or none; GaussianMixture's number of components, kind of covariance and its
regularisation in the same way. Both are then fitted again to all training rows. FlowModel has its defaults, but
``--flow`` gives it other arguments, as JSON. The true mean log-density, where it is known, is the ceiling.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from sklearn.datasets import load_digits, make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

COPIES = 5


@dataclass(frozen=True)
class Rows:
    """Rows to train on, to tune on (a part of them kept apart) and to test on, and the true mean log-density."""

    fit: np.ndarray
    tune: np.ndarray
    test: np.ndarray
    truth: float | None = None

    @property
    def train(self) -> np.ndarray:
        """All training rows."""
        return np.concatenate([self.fit, self.tune])


def moons(seed: int) -> Rows:
    """Two interleaving half circles, which are 2,000 Gaussians of one width along two arcs: that is their density."""
    x = np.asarray(make_moons(4000, noise=0.07, random_state=seed)[0])
    centres = np.asarray(make_moons(2000, shuffle=False)[0])
    true = KernelDensity(bandwidth=0.07).fit(centres)
    return Rows(x[:1600], x[1600:2000], x[2000:], true.score(x[2000:]) / 2000)


def _gaussians(seed: int, count: int, spread: float) -> Rows:
    """``count`` Gaussians in five dimensions; the same ones for every seed, which draws the rows."""
    fixed, d = np.random.default_rng(12345), 5
    means = spread * fixed.normal(size=(count, d))
    roots = fixed.normal(size=(count, d, d)) / np.sqrt(d) + 0.3 * np.eye(d)
    shares = fixed.dirichlet(3 * np.ones(count))
    rng = np.random.default_rng(seed)
    which = rng.choice(count, 4000, p=shares)
    x = means[which] + np.einsum("nij,nj->ni", roots[which], rng.normal(size=(4000, d)))
    true = GaussianMixture(count, covariance_type="full")
    true.means_, true.weights_ = means, shares
    true.covariances_ = roots @ roots.transpose(0, 2, 1)
    true.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(true.covariances_))
    return Rows(x[:1600], x[1600:2000], x[2000:], float(true.score(x[2000:])))


def mixture(seed: int) -> Rows:
    """Eight Gaussians far apart, which GaussianMixture can find."""
    return _gaussians(seed, 8, 3.0)


def crowd(seed: int) -> Rows:
    """A hundred Gaussians, each with twenty rows on average, as many as it has parameters."""
    return _gaussians(seed, 100, 2.0)


def digits(seed: int) -> Rows:
    """Pictures of 64 pixels, dequantised; all draws of a picture's noise lie in one part."""
    x = np.asarray(load_digits(return_X_y=True)[0])
    rng = np.random.default_rng(seed)
    x = x[rng.permutation(len(x))]
    n, kept = round(0.8 * len(x)), round(0.64 * len(x))
    noisy = lambda part, copies: np.concatenate([part + rng.uniform(size=part.shape) for _ in range(copies)])
    return Rows(noisy(x[:kept], COPIES), noisy(x[kept:n], COPIES), noisy(x[n:], 1))


DATA: dict[str, Callable[[int], Rows]] = {"moons": moons, "mixture": mixture, "crowd": crowd, "digits": digits}


def _best(candidates: Iterator[tuple[str, Callable]], rows: Rows) -> tuple[str, float]:
    """The candidate of highest log-likelihood on the rows kept for tuning, fitted again to all: name and score."""
    scores = {name: (make().fit(rows.fit).score(rows.tune) / len(rows.tune), make) for name, make in candidates}
    name = max(scores, key=lambda key: scores[key][0])
    return name, scores[name][1]().fit(rows.train).score(rows.test) / len(rows.test)


def kernel_density(rows: Rows, seed: int) -> tuple[str, float]:
    """KernelDensity, bandwidth and scaling tuned."""
    deviation = rows.fit.std(0).mean()

    def candidates() -> Iterator[tuple[str, Callable]]:
        for h in np.geomspace(0.02, 1.0, 16):
            yield f"h={deviation * h:.3f}", lambda h=h: KernelDensity(bandwidth=deviation * h)
            yield f"h={h:.3f}, scaled", lambda h=h: _Scaled(KernelDensity(bandwidth=h))

    return _best(candidates(), rows)


class _Scaled:
    """A density of standardised rows, its score in the units of the data."""

    def __init__(self, model: KernelDensity) -> None:
        self.scaler, self.model = StandardScaler(), model

    def fit(self, x: np.ndarray) -> _Scaled:
        self.model.fit(self.scaler.fit_transform(x))
        return self

    def score(self, x: np.ndarray) -> float:
        scale = np.asarray(self.scaler.scale_)
        return self.model.score(np.asarray(self.scaler.transform(x))) - len(x) * float(np.log(scale).sum())


class _Mixture(GaussianMixture):
    """A GaussianMixture whose score is a sum, as KernelDensity's is."""

    def score(self, X: np.ndarray, y: None = None) -> float:
        return float(self.score_samples(X).sum())


def gaussian_mixture(rows: Rows, seed: int) -> tuple[str, float]:
    """GaussianMixture, components, covariances and regularisation tuned."""
    wide = rows.fit.shape[1] > 10
    counts = (1, 2, 5, 10, 20, 40, 80) if wide else (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)
    floors = (1e-2, 3e-2, 1e-1) if wide else (1e-6,)

    def candidates() -> Iterator[tuple[str, Callable]]:
        for k, kind, floor in product(counts, ("full", "diag"), floors):
            make = lambda k=k, kind=kind, floor=floor: _Mixture(
                k, covariance_type=kind, reg_covar=floor, random_state=seed, n_init=1 if wide else 3
            )
            yield f"{k} {kind}, floor {floor:g}", make

    return _best(candidates(), rows)


def flow_model(rows: Rows, seed: int, arguments: dict) -> tuple[str, float]:
    """FlowModel on all training rows."""
    from advect import FlowModel

    model = FlowModel(random_state=seed, **arguments).fit(rows.train)
    return f"{model.n_iter_} steps", model.score(rows.test)


def main() -> None:
    """Print a line a data set, seed and method, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--methods", nargs="+", default=["KernelDensity", "GaussianMixture", "FlowModel"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flow", type=json.loads, default={}, help="arguments of FlowModel, as JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    methods = {
        "KernelDensity": kernel_density,
        "GaussianMixture": gaussian_mixture,
        "FlowModel": lambda rows, seed: flow_model(rows, seed, args.flow),
    }
    table = []
    for data in args.data:
        scores: dict[str, list[float]] = {name: [] for name in args.methods}
        for seed in range(args.seeds):
            rows = DATA[data](seed)
            for name in args.methods:
                began = time.monotonic()
                chosen, score = methods[name](rows, seed)
                scores[name].append(score)
                truth = "" if rows.truth is None else f"  (truth {rows.truth:.3f})"
                took = time.monotonic() - began
                print(f"{data} seed {seed}  {name}: {score:.3f}  {chosen}, {took:.0f} s{truth}", flush=True)
        cells = [f"{np.mean(s):.3f} ± {np.std(s, ddof=1) if len(s) > 1 else 0:.3f}" for s in scores.values()]
        table.append(f"| {data} | " + " | ".join(cells) + " |")
    print(f"| data | {' | '.join(args.methods)} |\n|---" * 1 + "|---" * len(args.methods) + "|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
