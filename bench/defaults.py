"""Held-out log density of FlowModel's defaults beside a tuned GaussianMixture and KernelDensity, on small tables.

Tables of scikit-learn (features, and the target of diabetes) and, where ``--power`` names the file of UCI's combined
cycle power plant (five columns of numbers, blanks between), 100, 500 and 2,000 of its rows, which stand for California
housing's. Columns are standardised by the training rows; 70% train (of the power plant the first N), the others test,
split anew for each seed. Nats a row.

Components (1 to 16), kind of covariance and floor of GaussianMixture, and the bandwidth of KernelDensity, are chosen
by four-fold likelihood of the training rows and fitted to all. A floor near 0 makes the density of a column of few
values, such as the sex in diabetes, as high as one likes; ``--floor`` is the least tried.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from interleave import machine
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from sklearn.neighbors import KernelDensity

from sklearn import datasets

SMALL = ("iris", "wine", "diabetes", "breast_cancer")


@dataclass(frozen=True)
class Fit:
    """Mean log densities of one model, in nats a row, and seconds of choice, fit and score."""

    test: float
    train: float
    seconds: float


def table(name: str, seed: int, power: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Standardised training and test rows; ``power-N`` has N training rows."""
    rng = np.random.default_rng(seed)
    if name.startswith("power-"):
        assert power is not None
        x, n = np.loadtxt(power), int(name.removeprefix("power-"))
        x = x[rng.permutation(len(x))][: n + 1000]
    else:
        bunch: Any = getattr(datasets, f"load_{name}")()
        x = np.column_stack([bunch.data, bunch.target]) if name == "diabetes" else bunch.data
        x, n = x[rng.permutation(len(x))], round(0.7 * len(x))
    mean, std = x[:n].mean(0), x[:n].std(0)
    return (x[:n] - mean) / std, (x[n:] - mean) / std


def tuned(candidates: Iterator[Callable[[], Any]], train: np.ndarray, test: np.ndarray) -> Fit:
    """The candidate of highest four-fold likelihood, fitted to all training rows."""
    start, folds = time.perf_counter(), list(KFold(4, shuffle=True, random_state=0).split(train))

    def score(make: Callable[[], Any]) -> float:
        try:
            return float(np.mean([make().fit(train[a]).score_samples(train[b]).mean() for a, b in folds]))
        except ValueError:  # a component without rows
            return -np.inf

    best = max(candidates, key=score)().fit(train)
    values = [float(best.score_samples(x).mean()) for x in (test, train)]
    return Fit(values[0], values[1], time.perf_counter() - start)


def mixtures(rows: int, floor: float) -> Iterator[Callable[[], Any]]:
    floors = [f for f in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1) if f >= floor]
    for k, kind, least in product((1, 2, 3, 4, 6, 8, 12, 16), ("full", "tied", "diag"), floors):
        if 4 * k < rows:
            yield lambda k=k, kind=kind, least=least: GaussianMixture(
                k, covariance_type=kind, reg_covar=least, random_state=0
            )


def kernels() -> Iterator[Callable[[], Any]]:
    for width in np.geomspace(0.05, 1.5, 14):
        yield lambda width=width: KernelDensity(bandwidth=width)


def flow(train: np.ndarray, test: np.ndarray, seed: int) -> Fit:
    """FlowModel as it comes."""
    from advect import FlowModel

    start = time.perf_counter()
    model = FlowModel(random_state=seed).fit(train)
    return Fit(model.score(test), float(model.score_samples(train).mean()), time.perf_counter() - start)


def main() -> None:
    """Fit all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=SMALL)
    parser.add_argument("--power", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--floor", type=float, default=1e-6)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{machine()}\n\n| data | rows x columns | model | held out | by seed | train less held out | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    sizes = [f"power-{n}" for n in (100, 500, 2000)] if args.power else []
    for name in (*args.data, *sizes):
        fits: dict[str, list[Fit]] = {"FlowModel": [], "GaussianMixture": [], "KernelDensity": []}
        shape = ""
        for seed in args.seeds:
            train, test = table(name, seed, args.power)
            shape = f"{len(train):,} x {train.shape[1]}"
            fits["FlowModel"].append(flow(train, test, seed))
            fits["GaussianMixture"].append(tuned(mixtures(len(train), args.floor), train, test))
            fits["KernelDensity"].append(tuned(kernels(), train, test))
        for model, found in fits.items():
            test, gap = np.array([f.test for f in found]), np.mean([f.train - f.test for f in found])
            seeds = ", ".join(f"{value:.2f}" for value in test)
            seconds = np.mean([f.seconds for f in found])
            values = f"{test.mean():.2f} ± {test.std(ddof=min(1, len(test) - 1)):.2f} | {seeds} | {gap:.1f}"
            print(f"| {name} | {shape} | {model} | {values} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
