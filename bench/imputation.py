"""Imputation of values missing at random: FlowImputer, scikit-learn's imputers, and ForestDiffusion if installed.

    python bench/imputation.py iris wine breast_cancer adult.csv --seeds 3

A fifth of the values is removed. A row a method, mean and standard deviation over seeds, of numbers scaled to [0, 1]:
the least absolute error of five draws for each missing value (min), the mean error of draws (avg) and the error of
the point estimate (the method's own, or the mean of draws); the share of missing values within the central 90% of 50
draws (cover); the accuracy of a random forest trained on imputed rows, on complete rows left out; CPU-seconds. Of a
table (.csv) 3,000 rows of its numbers are taken, and its last column as labels.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import sklearn.datasets as toy
from interleave import machine
from sklearn.ensemble import RandomForestClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.model_selection import train_test_split

import advect

DRAWS, MANY = 5, 50
Draws = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Rows with NaN to a point estimate (N, D), and draws (K, N, D)."""


def flow(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    imputer = advect.FlowImputer(random_state=seed).fit(x)
    drawn = np.stack(imputer.sample(x, MANY))
    return drawn.mean(0), drawn


def iterative(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Its point estimate, and draws of its posterior."""
    point: Any = IterativeImputer(random_state=seed, max_iter=20).fit_transform(x)
    some: Any = [
        IterativeImputer(random_state=seed + k, sample_posterior=True, max_iter=10).fit_transform(x)
        for k in range(MANY)
    ]
    return point, np.stack(some)


def single(imputer) -> Draws:
    def impute(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        point = imputer.fit_transform(x)
        return point, point[None]

    return impute


def forest(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from ForestDiffusion import ForestDiffusionModel  # pyright: ignore[reportMissingImports]

    model = ForestDiffusionModel(x, n_t=50, duplicate_K=100, bin_indexes=[], cat_indexes=[], int_indexes=[],
                                 diffusion_type="vp", n_jobs=1, seed=seed)  # fmt: skip
    drawn = np.stack(model.impute(repaint=True, r=10, j=5, k=DRAWS))
    return drawn.mean(0), drawn


METHODS: dict[str, Draws] = {
    "advect.FlowImputer": flow,
    "IterativeImputer": iterative,
    "KNNImputer": single(KNNImputer()),
    "mean": single(SimpleImputer()),
    "ForestDiffusion": forest,
}


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (N, D) and labels (N,)."""
    if Path(name).suffix == ".csv":
        import pandas as pd

        frame = pd.read_csv(name).sample(3000, random_state=0)
        label = str(frame.columns[-1])
        numbers = frame.drop(columns=[label]).select_dtypes("number")
        return numbers.to_numpy(float), frame[label].astype("category").cat.codes.to_numpy()
    return getattr(toy, f"load_{name}")(return_X_y=True)


def measure(impute: Draws, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    x, rest, y, y_rest = cast(Any, train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y))
    low, span = x.min(0), np.where(np.ptp(x, 0) > 0, np.ptp(x, 0), 1)
    x, rest = (x - low) / span, (rest - low) / span
    holes = rng.random(x.shape) < 0.2
    holes[holes.all(1), 0] = False
    began = time.process_time()
    point, draws = impute(np.where(holes, np.nan, x), seed)
    seconds = time.process_time() - began
    error = np.abs(draws[:DRAWS] - x)[:, holes]
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    right = [
        RandomForestClassifier(random_state=seed).fit(some, y).score(rest, y_rest)
        for some in draws[: min(3, len(draws))]
    ]
    return {
        "min": error.min(0).mean(),
        "avg": error.mean(),
        "point": np.abs(point - x)[holes].mean(),
        "cover": ((x >= low) & (x <= high))[holes].mean() if len(draws) >= MANY else np.nan,
        "accuracy": float(np.mean(right)),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine())
    print("| data | rows x columns | method | min | avg | point | cover | accuracy | seconds |\n" + "|---" * 9 + "|")
    for name in a.data:
        x, y = data(name)
        for method in a.methods:
            try:
                found = [measure(METHODS[method], x, y, seed) for seed in range(a.seeds)]
            except ImportError:
                continue
            cells = []
            for key in found[0]:
                values = [f[key] for f in found]
                cells.append("" if np.isnan(values).any() else f"{np.mean(values):.3f} ± {np.std(values):.3f}")
            cells[-1] = f"{np.mean([f['seconds'] for f in found]):.0f}"
            print(f"| {Path(name).stem} | {len(x)} x {x.shape[1]} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
