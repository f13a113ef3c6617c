"""FlowRegressor with its defaults beside NGBoost, quantile gradient boosting and Gaussian processes, on UCI's splits.

    python bench/regression.py FOLDER concrete energy kin8nm power-plant --splits 5

FOLDER/NAME holds data.txt, index_features.txt, index_target.txt, index_train_K.txt and index_test_K.txt
(Hernandez-Lobato & Adams 2015). For each: mean negative log-density (nats), CRPS, share of test rows in 90%
intervals, RMSE, seconds of fit and questions; mean and standard error over splits. Peers that are not installed are
left out; NGBoost is `pip install ngboost`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.preprocessing import StandardScaler

from advect import FlowRegressor

GP_ROWS = 1100
Law = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Log-densities, CRPS, 90% intervals (n, 2), means."""


def flow(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int) -> Law:
    model = FlowRegressor(random_state=seed).fit(x, y)
    return (
        model.log_prob(x_test, y_test),
        model.crps(x_test, y_test),
        model.predict_interval(x_test),
        model.predict(x_test),
    )


def gaussian(mean: np.ndarray, std: np.ndarray, y: np.ndarray) -> Law:
    """Of normal laws; the CRPS by Gneiting et al. 2005, eq. 5."""
    z = (y - mean) / std
    score = std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    reach = stats.norm.ppf(0.95) * std
    return stats.norm.logpdf(z) - np.log(std), score, np.stack([mean - reach, mean + reach], 1), mean


def ngboost(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int) -> Law:
    from ngboost import NGBRegressor  # pyright: ignore[reportMissingImports]

    rows = np.random.default_rng(seed).permutation(len(x))
    held_out, train = rows[: len(x) // 5], rows[len(x) // 5 :]
    options: dict[str, Any] = {"n_estimators": 2000, "learning_rate": 0.01, "verbose": False, "random_state": seed}
    first = NGBRegressor(early_stopping_rounds=50, **options)
    first.fit(x[train], y[train], x[held_out], y[held_out])
    best = max(int(first.best_val_loss_itr or 2000), 1)
    law = NGBRegressor(**{**options, "n_estimators": best}).fit(x, y).pred_dist(x_test)
    return gaussian(law.loc, law.scale, y_test)


def boosted_quantiles(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int) -> Law:
    levels = (np.arange(20) + 0.5) / 20  # those of 90% intervals are between the outer two, by interpolation
    models = [HistGradientBoostingRegressor(loss="quantile", quantile=q, random_state=seed).fit(x, y) for q in levels]
    found = np.sort(np.stack([model.predict(x_test) for model in models], 1), 1)
    loss = np.where(y_test[:, None] > found, levels, levels - 1) * (y_test[:, None] - found)
    interval = np.stack([np.interp(q, levels, range(20)) for q in (0.05, 0.95)])
    low, high = (found[:, int(i)] + (i % 1) * (found[:, int(i) + 1] - found[:, int(i)]) for i in interval)
    return np.full(len(x_test), np.nan), 2 * loss.mean(1), np.stack([low, high], 1), found.mean(1)


def process(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int) -> Law:
    lengths: Any = np.ones(x.shape[1])
    scaler, kernel = StandardScaler().fit(x), ConstantKernel() * RBF(lengths) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed).fit(scaler.transform(x), y)
    mean, std = model.predict(scaler.transform(x_test), return_std=True)[:2]
    return gaussian(np.asarray(mean), np.asarray(std), y_test)


METHODS: dict[str, Callable[..., Law]] = {
    "FlowRegressor": flow,
    "NGBoost": ngboost,
    "boosted quantiles": boosted_quantiles,
    "Gaussian process": process,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    a = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that do not converge
    print("| data | method | splits | NLL | CRPS | in 90% intervals | RMSE | fit and questions, s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in a.names:
        rows: dict[str, list[list[float]]] = {method: [] for method in a.methods}
        for split in range(a.splits):
            parts = read(a.folder / name, split)
            for method in a.methods:
                if method == "Gaussian process" and len(parts[0]) > GP_ROWS:
                    continue
                figures = measured(METHODS[method], parts, split)
                if figures is not None:
                    rows[method].append(figures)
        for method, found in rows.items():
            if found:
                mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
                cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]
                print(
                    f"| {name} | {method} | {len(found)} | " + " | ".join(cells[:4]) + f" | {mean[4]:.0f} |",
                    flush=True,
                )


def read(folder: Path, split: int) -> tuple[np.ndarray, ...]:
    """Training and test features and responses of a split."""
    data = np.loadtxt(folder / "data.txt")
    features, target = (np.loadtxt(folder / f"index_{what}.txt").astype(int) for what in ("features", "target"))
    train, test = (np.loadtxt(folder / f"index_{what}_{split}.txt").astype(int) for what in ("train", "test"))
    x, y = data[:, features], data[:, int(target)]
    return x[train], y[train], x[test], y[test]


def measured(method: Callable[..., Law], parts: tuple[np.ndarray, ...], seed: int) -> list[float] | None:
    """NLL, CRPS, coverage, RMSE and seconds; None where a peer is not installed."""
    began, y = time.perf_counter(), parts[3]
    try:
        density, score, interval, mean = method(*parts, seed)
    except ImportError:
        return None
    inside = (interval[:, 0] <= y) & (y <= interval[:, 1])
    seconds = time.perf_counter() - began
    return [-density.mean(), score.mean(), inside.mean(), np.sqrt(np.square(mean - y).mean()), seconds]


if __name__ == "__main__":
    main()
