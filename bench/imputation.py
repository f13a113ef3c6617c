"""Imputation of values missing at random: FlowImputer, scikit-learn's imputers, and ForestDiffusion if installed.

    python bench/imputation.py iris wine breast_cancer adult.csv --seeds 3

A fifth of the values is removed from four fifths of the rows. A row a method, mean and standard deviation over seeds.
Of numbers, scaled to [0, 1]: the least absolute error of five draws for each missing value (min), the mean error of
draws (avg) and the error of the point estimate (point: the method's own, or the mean of draws); the share of missing
values within the central 90% of the draws (cover). Of categories the share of the missing that the point estimate has
wrong (wrong: the method's own, or the most frequent draw). The accuracy of a random forest trained on imputed rows, on
complete rows left out; CPU-seconds. Of a table (.csv) its last column are the labels, text is categories, and an
unnamed first column is left out. Peers of scikit-learn get a column for each category, and answer with the largest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

DRAWS = 5
"""Draws of ``min`` and ``avg``."""

WIDE = 40
"""Columns from which chained equations are fitted for every tenth draw only."""


@dataclass(frozen=True)
class Rows:
    """Numbers and codes of categories (N, D), NaN where missing, with the number of categories by column."""

    x: np.ndarray
    categories: Mapping[int, int]

    @property
    def numbers(self) -> np.ndarray:
        """Whether each column holds numbers."""
        return ~np.isin(np.arange(self.x.shape[1]), list(self.categories))

    def one_hot(self) -> np.ndarray:
        """(N, E): the numbers, then a column for each category, NaN where missing."""
        each = [np.where(np.isnan(c := self.x[:, [i]]), np.nan, c == np.arange(k)) for i, k in self.categories.items()]
        return np.hstack([self.x[:, self.numbers], *each])

    def codes(self, wide: np.ndarray) -> np.ndarray:
        """Back from :meth:`one_hot`, with the largest of each category's columns."""
        x, first = np.empty(self.x.shape), int(self.numbers.sum())
        x[:, self.numbers] = wide[:, :first]
        for i, k in self.categories.items():
            x[:, i], first = wide[:, first : first + k].argmax(1), first + k
        return x


@dataclass(frozen=True)
class Effort:
    """How many draws, and the flow's most steps, default its own."""

    many: int = 50
    steps: int | None = None


Draws = Callable[[Rows, int, Effort], tuple[np.ndarray, np.ndarray]]
"""Rows with NaN to a point estimate (N, D), and draws (K, N, D)."""


def typical(rows: Rows, drawn: np.ndarray) -> np.ndarray:
    """The mean of draws (K, N, D) of numbers, and their most frequent category."""
    point = drawn.mean(0)
    for i, k in rows.categories.items():
        point[:, i] = (drawn[..., i, None] == np.arange(k)).sum(0).argmax(1)
    return point


def flow(rows: Rows, seed: int, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    data: Any = rows.x
    if rows.categories:
        import pandas as pd

        data = pd.DataFrame(rows.x).rename(columns=str)
        for i in rows.categories:
            data[str(i)] = data[str(i)].map(lambda v: None if np.isnan(v) else f"c{v:.0f}").astype(object)
    imputer = advect.FlowImputer(random_state=seed, steps=effort.steps).fit(data)
    drawn = []
    for some in imputer.sample(data, effort.many):
        for i in rows.categories:
            some[str(i)] = some[str(i)].str[1:]
        drawn.append(np.asarray(some, float))
    return typical(rows, np.stack(drawn)), np.stack(drawn)


def iterative(rows: Rows, seed: int, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """Its point estimate, and draws of its posterior."""
    x = rows.one_hot()
    wide = x.shape[1] > WIDE
    point: Any = IterativeImputer(random_state=seed, max_iter=20).fit_transform(x)
    drawn: list[Any] = []
    while len(drawn) < effort.many:
        imputer = IterativeImputer(random_state=seed + len(drawn), sample_posterior=True, max_iter=10)
        drawn.append(imputer.fit_transform(x))
        drawn += [imputer.transform(x) for _ in range(min(9, effort.many - len(drawn)) if wide else 0)]
    return rows.codes(point), np.stack([rows.codes(some) for some in drawn])


def single(imputer: Any) -> Draws:
    def impute(rows: Rows, seed: int, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
        point = rows.codes(imputer.fit_transform(rows.one_hot()))
        return point, point[None]

    return impute


def forest(rows: Rows, seed: int, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    from ForestDiffusion import ForestDiffusionModel  # pyright: ignore[reportMissingImports]

    model = ForestDiffusionModel(rows.x, n_t=50, duplicate_K=100, bin_indexes=[], cat_indexes=list(rows.categories),
                                 int_indexes=[], diffusion_type="vp", n_jobs=1, seed=seed)  # fmt: skip
    drawn = np.stack(model.impute(repaint=True, r=10, j=0.1, k=DRAWS))
    return typical(rows, drawn), drawn


METHODS: dict[str, Draws] = {
    "FlowImputer": flow,
    "IterativeImputer": iterative,
    "KNNImputer": single(KNNImputer()),
    "mean": single(SimpleImputer()),
    "ForestDiffusion": forest,
}


def data(name: str, most: int) -> tuple[Rows, np.ndarray]:
    """Rows, at most so many, and labels (N,)."""
    if Path(name).suffix != ".csv":
        x, y = getattr(toy, f"load_{name}")(return_X_y=True)
        rows = np.random.default_rng(0).permutation(len(x))[:most] if len(x) > most else np.arange(len(x))
        return Rows(x[rows], {}), y[rows]
    import pandas as pd

    frame = pd.read_csv(name)
    frame = frame.drop(columns=[c for c in frame.columns if c.startswith("Unnamed")])
    frame = frame.sample(min(most, len(frame)), random_state=0)
    label = str(frame.columns[-1])
    y, frame = frame[label].astype("category").cat.codes.to_numpy(), frame.drop(columns=[label])
    text = [i for i, name in enumerate(frame.columns) if not pd.api.types.is_numeric_dtype(frame[name])]
    for i in text:
        frame.isetitem(i, frame.iloc[:, i].astype("category").cat.codes)
    return Rows(frame.to_numpy(float), {i: int(frame.iloc[:, i].max()) + 1 for i in text}), y


def measure(impute: Draws, rows: Rows, y: np.ndarray, seed: int, effort: Effort) -> dict[str, float]:
    rng, numbers = np.random.default_rng(seed), rows.numbers
    x, rest, y, y_rest = cast(Any, train_test_split(rows.x, y, test_size=0.2, random_state=seed, stratify=y))
    low, span = x.min(0), np.where(np.ptp(x, 0) > 0, np.ptp(x, 0), 1)
    low, span = np.where(numbers, low, 0), np.where(numbers, span, 1)
    x, rest = (x - low) / span, (rest - low) / span
    holes = rng.random(x.shape) < 0.2
    holes[holes.all(1), 0] = False
    began = time.process_time()
    point, draws = impute(Rows(np.where(holes, np.nan, x), rows.categories), seed, effort)
    seconds = time.process_time() - began
    holes_of_numbers, holes_of_categories = holes & numbers, holes & ~numbers
    error = np.abs(draws[:DRAWS] - x)[:, holes_of_numbers]
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    right = [RandomForestClassifier(random_state=seed).fit(some, y).score(rest, y_rest) for some in draws[:3]]
    return {
        "min": error.min(0).mean(),
        "avg": error.mean(),
        "point": np.abs(point - x)[holes_of_numbers].mean(),
        "cover": ((x >= low) & (x <= high))[holes_of_numbers].mean() if len(draws) > DRAWS else np.nan,
        "wrong": (point != x)[holes_of_categories].mean() if rows.categories else np.nan,
        "accuracy": float(np.mean(right)),
        "seconds": seconds,
    }


def limited(minutes: float, *arguments: Any) -> dict[str, float] | str:
    """:func:`measure` in a process of its own, which is ended after so many minutes: then why there is nothing."""
    there, here = (context := multiprocessing.get_context("spawn")).Pipe()
    work = context.Process(target=_send, args=(here, *arguments))
    work.start()
    here.close()
    try:
        return there.recv() if there.poll(60 * minutes) else f"did not end in {minutes:g} minutes"
    except EOFError:
        return "failed"
    finally:
        work.terminate()
        work.join()


def _send(connection: Any, method: str, *arguments: Any) -> None:
    warnings.simplefilter("ignore")
    try:
        connection.send(measure(METHODS[method], *arguments))
    except ImportError:
        connection.send("is not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rows", type=int, default=3000, help="most rows of a set")
    parser.add_argument("--draws", type=int, default=50, help="draws of each missing value")
    parser.add_argument("--max-steps", type=int, help="training steps of the flow, default its own")
    parser.add_argument("--minutes", type=float, default=10, help="most minutes of ForestDiffusion for a set and seed")
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine())
    columns = ["min", "avg", "point", "cover", "wrong", "accuracy", "CPU-seconds"]
    print(f"| data | rows x columns | method | {' | '.join(columns)} |\n" + "|---" * (len(columns) + 3) + "|")
    for name in a.data:
        rows, y = data(name, a.rows)
        for method in a.methods:
            found = []
            for seed in range(a.seeds):
                arguments = (rows, y, seed, Effort(a.draws, a.max_steps))
                alone = method == "ForestDiffusion"
                found.append(limited(a.minutes, method, *arguments) if alone else measure(METHODS[method], *arguments))
                if isinstance(found[-1], str):
                    break
            size = f"{len(y)} x {rows.x.shape[1]}"
            print(f"| {Path(name).stem} | {size} | {method} | {cells(found, len(columns))} |", flush=True)


def cells(found: list[dict[str, float] | str], width: int) -> str:
    """Mean and standard deviation of each number over seeds; a word and empty cells for what was not measured."""
    if isinstance(found[-1], str):
        return found[-1] + " |" * (width - 1)
    told = []
    for key in found[0]:
        values = [cast(Any, f)[key] for f in found]
        told.append("" if np.isnan(values).any() else f"{np.mean(values):.3f} ± {np.std(values):.3f}")
    told[-1] = f"{np.mean([cast(Any, f)['seconds'] for f in found]):.0f}"
    return " | ".join(told)


if __name__ == "__main__":
    main()
