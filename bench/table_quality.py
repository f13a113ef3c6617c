"""Synthetic tables by the measures that papers on them tell: shape, trend, classifier two-sample test, efficacy.

Needs sdmetrics and xgboost, which are no dependencies of this project, and for adult what ``bench/tables.py`` needs.

The protocol is that of TabSyn and TabDiff (Zhang et al. 2024; Shi et al. 2025) as far as the data allow: a contestant
gets the training rows and gives as many new ones, which are compared with the training rows; classifiers that learned
from new rows are tested on rows that nobody saw. Each seed splits anew, four fifths to train on. Measures, all the
higher the better:

- shape, trend: the scores "Column Shapes" and "Column Pair Trends" of sdmetrics' quality report.
- C2ST, logistic and XGBoost: sdmetrics' detection score, ``1 - 2 max(AUC - 1/2, 0)`` of a classifier that tells new
  rows from training rows, in three folds.
- AUC: of XGBoost (100 trees of depth 6, rate 0.1) trained on new rows, on real test rows.
- rules: share of rows that break a function of the training rows, a column of which another one follows (the lower the
  better; only columns of 3 to 50 values that determine another of as many are looked at).
- copies: share of new rows that equal a training row; for "test", the test rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from tables import DATA, advect, copula, independent

MEASURES = ("shape", "trend", "C2ST", "XGB-C2ST", "AUC", "rules", "copies", "seconds")


def resampled(train: pd.DataFrame, seed: int, flags: list[str]) -> pd.DataFrame:
    """Training rows drawn with replacement: what a perfect model of them would give."""
    return train.sample(len(train), replace=True, random_state=seed, ignore_index=True)


CONTESTANTS = {"training rows": resampled, "independent": independent, "copula": copula, "advect": advect}


def numeric(frame: pd.DataFrame) -> dict[str, bool]:
    return {c: pd.api.types.is_numeric_dtype(frame[c].dtype) for c in frame}


def report_scores(real: pd.DataFrame, new: pd.DataFrame) -> tuple[float, float]:
    """sdmetrics' scores of shapes and of trends."""
    from sdmetrics.reports.single_table import QualityReport

    kinds = {c: {"sdtype": "numerical" if number else "categorical"} for c, number in numeric(real).items()}
    report = QualityReport()
    report.generate(real, new, {"columns": kinds}, verbose=False)
    shape, trend = report.get_properties()["Score"]
    return float(shape), float(trend)


def detection(real: pd.DataFrame, new: pd.DataFrame, classifier: str) -> float:
    """sdmetrics' detection score of a classifier."""
    from sdmetrics.single_table import LogisticDetection
    from xgboost import XGBClassifier

    class Boosted(LogisticDetection):
        @staticmethod
        def _get_classifier() -> Any:
            return XGBClassifier(n_jobs=1, random_state=0)

    kinds = {c: {"sdtype": "numerical" if number else "categorical"} for c, number in numeric(real).items()}
    metric = LogisticDetection if classifier == "logistic" else Boosted
    return float(metric.compute(real, new, {"columns": kinds}))


def inputs(frame: pd.DataFrame, like: pd.DataFrame) -> np.ndarray:
    """Rows as numbers, categories one-hot by those of ``like``."""
    parts = []
    for name, number in numeric(like).items():
        if number:
            parts.append(frame[name].to_numpy(np.float64, na_value=np.nan)[:, None])
        else:
            places = pd.Index(sorted(like[name].dropna().unique()))
            parts.append(np.eye(len(places) + 1)[places.get_indexer(frame[name])])
    return np.concatenate(parts, 1)


def efficacy(new: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame, target: str) -> float:
    """Area under the ROC curve on test rows of a classifier trained on new rows."""
    from xgboost import XGBClassifier

    label = lambda frame: pd.Categorical(frame[target], sorted(train[target].unique())).codes
    rest = train.drop(columns=target)
    model = XGBClassifier(n_estimators=100, max_depth=6, learning_rate=0.1, n_jobs=1, random_state=0)
    model.fit(inputs(new.drop(columns=target), rest), label(new))
    chances = model.predict_proba(inputs(test.drop(columns=target), rest))
    chances = chances[:, 1] if chances.shape[1] == 2 else chances
    return float(roc_auc_score(label(test), chances, multi_class="ovr"))


def broken_rules(new: pd.DataFrame, train: pd.DataFrame) -> float:
    """Mean share of new rows that break a function of one column that all training rows obey; NaN without any."""
    few, shares = [c for c in train if 2 < train[c].nunique() <= 50], []
    for a, b in permutations(few, 2):
        pairs: Any = train[[a, b]].dropna().drop_duplicates()
        if pairs[a].is_unique and len(pairs) > 2:
            follows = dict(pairs.to_numpy().tolist())
            both: Any = new[[a, b]].dropna()
            shares.append(float((both[a].map(follows) != both[b]).mean()))
    return float(np.mean(shares)) if shares else np.nan


def copies(new: pd.DataFrame, train: pd.DataFrame) -> float:
    """Share of rows that equal one to train on."""
    text = lambda frame: frame.astype(object).where(frame.notna(), "").astype(str).agg("|".join, axis=1)
    return float(text(new).isin(text(train)).mean())


def measure(new: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame, target: str) -> list[float]:
    """The MEASURES but for the time."""
    return [
        *report_scores(train, new),
        detection(train, new, "logistic"),
        detection(train, new, "XGBoost"),
        efficacy(new, train, test, target),
        broken_rules(new, train),
        copies(new, train),
    ]


def main() -> None:
    """Print a line a table, seed and contestant, then a table of means and deviations over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=["adult"])
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--flags", default="--max-minutes 10", help="flags of advect train, in one text")
    args = parser.parse_args()
    print(f"| table | rows from | {' | '.join(MEASURES)} |\n{'|---' * (len(MEASURES) + 2)}|", flush=True)
    for name in args.data:
        frame, target = DATA[name]()
        for contestant in args.contestants:
            scores = []
            for seed in range(args.seeds):
                mixed: Any = frame.sample(frac=1, random_state=seed, ignore_index=True)
                cut = 4 * len(mixed) // 5
                train, test = mixed[:cut], mixed[cut:].reset_index(drop=True)
                began = time.monotonic()
                new = CONTESTANTS[contestant](train, seed, args.flags.split())
                took = time.monotonic() - began
                scores.append([*measure(new, train, test, target), took])
                print(f"{name} {contestant} seed {seed}: {np.round(scores[-1], 4)}", file=sys.stderr, flush=True)
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(np.mean(scores, 0), np.std(scores, 0), strict=True)]
            print(f"| {name} | {contestant} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
