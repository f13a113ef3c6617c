"""Synthetic tables of mixed types beside real rows, independent columns and a Gaussian copula.

Real tables, each split anew for every seed into two thirds to train on and a third to test on:

- adult: the UCI census extract "Adult", 32,561 people, as the wheel of the package ``xai`` ships it (``census.csv``):
  whole numbers, among them two that are mostly 0, text of 2 to 16 values, and missing occupations and work classes.
- diabetes, wine, breast-cancer: as scikit-learn ships them, in their own units: whole numbers and reals, with the name
  of the class, or the sex, as a category.

A contestant gets the training rows and gives as many new ones:

- real: other real rows, the training rows themselves. This is the floor of the errors and the ceiling of the scores.
- independent: each column drawn by itself from the training rows.
- copula: normal scores of each column, categories in the order of their frequency, with the correlations of the
  training rows.
- advect: ``advect train --data table.csv`` and ``advect sample``, as the command line has them, and ``--flags``.

What is measured against the test rows, with as many rows as there are of them: the mean and the largest gap of a
column's distribution and the mean error of pairwise association (``advect.metrics.tabular``); and a
``HistGradientBoostingClassifier``, trained on the contestant's rows, on the test rows: accuracy and area under the ROC
curve. ``copies`` is the share of new rows that equal a training row; for "real" it is that of the test rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr, ndtri
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, roc_auc_score

from advect.data import read_table
from advect.metrics import association_error, column_gaps

MEASURES = ("gap", "largest gap", "association", "accuracy", "AUC", "copies")


def adult() -> tuple[pd.DataFrame, str]:
    """The census extract, its unknown values missing; the class is whether somebody earns more than 50,000 dollars."""
    package = find_spec("xai")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the table adult is in the package xai: pip install --no-deps xai")
    file = Path(package.submodule_search_locations[0], "data", "census.csv")
    return pd.read_csv(file, index_col=0, skipinitialspace=True, na_values="?"), "loan"


def diabetes() -> tuple[pd.DataFrame, str]:
    """442 patients; the class, whether the disease's progress is above its median, is taken of the number learned."""
    bunch: Any = load_diabetes(as_frame=True, scaled=False)
    frame = bunch.frame
    frame["sex"] = frame["sex"].map({1.0: "one", 2.0: "two"})
    return _whole(frame), "target"


def wine() -> tuple[pd.DataFrame, str]:
    """178 wines of three growers."""
    return _named(load_wine(as_frame=True)), "target"


def breast_cancer() -> tuple[pd.DataFrame, str]:
    """569 tumours, benign or malignant."""
    return _named(load_breast_cancer(as_frame=True)), "target"


def _named(bunch: Any) -> pd.DataFrame:
    frame = bunch.frame.copy()
    frame["target"] = bunch.target_names[bunch.target].astype(object)
    return _whole(frame)


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the type of whole numbers where all of a column are such."""
    whole = [c for c in frame.select_dtypes("number") if np.array_equal(frame[c], frame[c].round())]
    return frame.astype(dict.fromkeys(whole, "int64"))


DATA: dict[str, Callable[[], tuple[pd.DataFrame, str]]] = {
    "adult": adult,
    "diabetes": diabetes,
    "wine": wine,
    "breast-cancer": breast_cancer,
}


def real(train: pd.DataFrame, seed: int, flags: list[str]) -> pd.DataFrame:
    """The training rows."""
    return train


def independent(train: pd.DataFrame, seed: int, flags: list[str]) -> pd.DataFrame:
    """Each column drawn by itself, with replacement."""
    rng = np.random.default_rng(seed)
    n = len(train)
    return pd.DataFrame({c: train[c].to_numpy()[rng.integers(0, n, n)] for c in train}).astype(train.dtypes)


def copula(train: pd.DataFrame, seed: int, flags: list[str]) -> pd.DataFrame:
    """A Gaussian copula over the columns' own quantiles, missing values as the largest."""
    n, orders, scores = len(train), {}, []
    for name in train:
        column = train[name]
        counts = column.groupby(column).transform("size")
        keys = column if pd.api.types.is_numeric_dtype(column.dtype) else counts
        orders[name] = column.iloc[np.lexsort([column.astype(str), keys.fillna(np.inf)])].reset_index(drop=True)
        ranks = pd.Series(range(n)).groupby(orders[name], dropna=False).transform("mean")
        places = dict(zip(orders[name].where(orders[name].notna(), None), ranks, strict=True))
        scores.append([ndtri((places[v] + 0.5) / n) for v in column.where(column.notna(), None)])
    correlation = np.corrcoef(np.array(scores))
    z = np.random.default_rng(seed).multivariate_normal(np.zeros(len(correlation)), correlation, n, method="eigh")
    rows = (ndtr(z) * n).astype(int).clip(0, n - 1)
    return pd.DataFrame({c: orders[c].to_numpy()[rows[:, i]] for i, c in enumerate(train)}).astype(train.dtypes)


def advect(train: pd.DataFrame, seed: int, flags: list[str]) -> pd.DataFrame:
    """A flow by the command line."""
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder, "table.csv"), Path(folder, "run")
        train.to_csv(file, index=False)
        for words in (
            ["train", "--data", file, "--run-dir", run, "--seed", seed, "--held-out", 0, *flags],
            ["sample", run, "--num-samples", len(train), "--seed", seed, "--output-dir", run / "new"],
        ):
            done = subprocess.run([sys.executable, "-m", "advect", *map(str, words)], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr or done.stdout)
        return read_table(next((run / "new").glob("*.csv")))


CONTESTANTS = {"real": real, "independent": independent, "copula": copula, "advect": advect}


def measure(found: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame, target: str) -> dict[str, float]:
    """The MEASURES of rows found, against test rows; the target's classes are those of the training rows."""
    kinds = {c: not pd.api.types.is_numeric_dtype(train[c].dtype) for c in train}
    categorical = list(kinds.values())
    names = {c: pd.Index(train[c].dropna().unique()) for c in train if kinds[c]}

    def numbers(frame: pd.DataFrame) -> torch.Tensor:
        coded = {c: names[c].get_indexer(frame[c]) if kinds[c] else frame[c] for c in train}
        values = pd.DataFrame(coded).astype("Float64").to_numpy(np.float64, na_value=np.nan)
        values[:, categorical] = np.where(values[:, categorical] < 0, np.nan, values[:, categorical])
        return torch.from_numpy(values)

    few, rows = numbers(found.head(len(test))), numbers(test)
    gaps = column_gaps(few, rows, categorical=categorical)
    middle = None if kinds[target] else train[target].median()
    label = lambda frame: frame[target].astype(str) if middle is None else frame[target] > middle
    inputs = lambda frame: pd.DataFrame(
        {c: pd.Categorical(frame[c], names[c]) if kinds[c] else frame[c].astype(float) for c in train if c != target}
    )
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    model.fit(inputs(found), label(found))
    chances = model.predict_proba(inputs(test))
    chances = chances[:, 1] if chances.shape[1] == 2 else chances
    text = lambda frame: frame.astype(object).where(frame.notna(), "").astype(str).agg("|".join, axis=1)
    return {
        "gap": float(gaps.mean()),
        "largest gap": float(gaps.max()),
        "association": association_error(few, rows, categorical=categorical),
        "accuracy": float(accuracy_score(label(test), model.predict(inputs(test)))),
        "AUC": float(roc_auc_score(label(test), chances, multi_class="ovr")),
        "copies": float(text(test if found is train else found).isin(text(train)).mean()),
    }


def main() -> None:
    """Print a line a table, seed and contestant, then a table of means and deviations over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flags", default="", help="more flags of advect train, in one text")
    args = parser.parse_args()
    print(f"| table | rows from | {' | '.join(MEASURES)} |\n{'|---' * (len(MEASURES) + 2)}|", flush=True)
    for name in args.data:
        frame, target = DATA[name]()
        for contestant in args.contestants:
            scores = []
            for seed in range(args.seeds):
                mixed: Any = frame.sample(frac=1, random_state=seed, ignore_index=True)
                train, test = mixed[: 2 * len(mixed) // 3], mixed[2 * len(mixed) // 3 :]
                began = time.monotonic()
                found = CONTESTANTS[contestant](train, seed, args.flags.split())
                took = time.monotonic() - began
                scores.append(list(measure(found, train, test, target).values()))
                print(f"{name} {contestant} seed {seed}: {np.round(scores[-1], 4)}, {took:.0f} s", file=sys.stderr)
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(np.mean(scores, 0), np.std(scores, 0), strict=True)]
            print(f"| {name} | {contestant} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
