"""How each score of an evaluation is taken: from two summaries and what their comparisons share to numbers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.types import Category
from advect.evaluation.class_accuracy import ProbeClassifier
from advect.evaluation.sample_statistics import CONDITION, FEATURES, ROWS, VALUES, SampleStatistics
from advect.evaluation.subsampling import rows
from advect.metrics import (
    association_error,
    class_shares,
    column_gaps,
    correlation_error,
    energy_distance,
    frechet_at_infinity,
    kernel_distance,
    kolmogorov_smirnov,
    manifolds,
    mean_r2,
    rbf_mmd,
    sliced_wasserstein,
    two_sample_test,
    variance_r2,
    wasserstein,
    within,
    zero_share,
)

MAX_FEATURES = 1000
"""At most so many features, evenly chosen, are looked at; their correlations are as many squared."""

SPARSE = 0.01
"""Zeros are counted where at least this share of the held-out values is zero."""

MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "kolmogorov_smirnov": lambda x, y: float(kolmogorov_smirnov(x, y).mean()),
    "correlation_error": correlation_error,
    "mean_r2": mean_r2,
    "variance_r2": variance_r2,
}


def measure_feature_marginals(
    samples: Tensor, train: Tensor, held_out: Tensor, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compare samples (n, D) with held_out (M, D), and as many rows of train (N, D) with it, which is the floor.

    For each measure of ``advect.metrics`` that is defined, its values "samples" and "floor"; "zero_share", where
    the data have zeros, is not against held-out data, whose own share is "held_out".
    """
    chosen = torch.linspace(0, samples.shape[1] - 1, min(MAX_FEATURES, samples.shape[1])).round().long()
    x, y = samples[:, chosen], held_out[:, chosen]
    real = train[rows(len(train), len(samples), seed)][:, chosen]
    found: dict[str, dict[str, float]] = {}
    for name, measure in MEASURES.items():
        try:
            found[name] = {"samples": measure(x, y), "floor": measure(real, y)}
        except UserError:  # such as features that do not vary
            continue
    if zero_share(y) >= SPARSE:
        found["zero_share"] = {"samples": zero_share(x), "floor": zero_share(real), "held_out": zero_share(y)}
    return found


DISTANCES, EXACT, AT_LEAST = 5000, 2000, 20
"""Rows for distances between all pairs and for exact transport; rows that a group needs to be compared within."""


@dataclass(frozen=True)
class EvalContext:
    """What all comparisons of one evaluation share.

    Attributes:
        kind: of the data: "image", "vector", "cells", "table" or "sequence".
        train, held_out: rows of either split; one is the reference, and the floor compares it with the other.
        categories: the data's categorical conditions.
        categorical: of a table, whether each column is one.
        standardise: whether features have units of their own.
    """

    kind: str
    train: SampleStatistics
    held_out: SampleStatistics
    categories: Mapping[str, Category]
    categorical: tuple[bool, ...] = ()
    standardise: bool = False

    @cached_property
    def judges(self) -> dict[str, tuple[ProbeClassifier, Tensor]]:
        """For each categorical condition a classifier fitted to held-out rows, and what it sees in training rows."""
        found = {}
        for name in self.categories:
            data = self.held_out.take(FEATURES, DISTANCES), self.held_out.take(CONDITION + name, DISTANCES)
            judge = ProbeClassifier.fit(data, features=lambda x: x, standardise=self.standardise)
            if judge is not None:
                found[name] = judge, judge(self.train.take(FEATURES, DISTANCES))
        return found


Measure = Callable[[SampleStatistics, SampleStatistics, EvalContext], dict[str, float]]
"""From samples, reference and ground to numbers by name."""


def of_features(measure: Callable[[Tensor, Tensor], float], name: str, rows: int) -> Measure:
    """A measure of features alone."""
    return lambda x, y, _: {name: measure(x.take(FEATURES, rows), y.take(FEATURES, rows))}


def measure_wasserstein(x: SampleStatistics, y: SampleStatistics, _: EvalContext) -> dict[str, float]:
    k = min(EXACT, x.count, y.count)  # transport pairs each row with one
    return {"wasserstein": wasserstein(x.take(FEATURES, k), y.take(FEATURES, k))}


def measure_frechet(x: SampleStatistics, y: SampleStatistics, _: EvalContext) -> dict[str, float]:
    return {"frechet": x.gaussian.distance(y.gaussian)}


def measure_frechet_infinity(x: SampleStatistics, y: SampleStatistics, _: EvalContext) -> dict[str, float]:
    return {"frechet_infinity": frechet_at_infinity(x.rows[FEATURES], y.gaussian).value}


def measure_kernel(x: SampleStatistics, y: SampleStatistics, _: EvalContext) -> dict[str, float]:
    found = kernel_distance(x.rows[FEATURES], y.rows[FEATURES])
    return {"kernel": found.value, "kernel_se": found.standard_error}


def measure_manifolds(x: SampleStatistics, y: SampleStatistics, _: EvalContext) -> dict[str, float]:
    found = manifolds(x.rows[FEATURES], y.rows[FEATURES])
    return {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}


def measure_class_shares(x: SampleStatistics, y: SampleStatistics, ground: EvalContext) -> dict[str, float]:
    """Against training rows, as the classifier was fitted to held-out ones; of data it is what chance alone makes."""
    shares = {}
    for name, (judge, real) in ground.judges.items():
        floor = x is ground.train or x is ground.held_out
        seen = real if floor else judge(x.take(FEATURES, DISTANCES))
        found = class_shares(seen, real, classes=len(ground.categories[name].names))
        shares[f"class_shares_{name}"] = found.floor if floor else found.distance
    return shares


def measure_two_sample(x: SampleStatistics, y: SampleStatistics, _: EvalContext) -> dict[str, float]:
    found = two_sample_test(x.take(FEATURES, DISTANCES), y.take(FEATURES, DISTANCES))
    return {"two_sample": found.accuracy}


def measure_marginals(x: SampleStatistics, y: SampleStatistics, ground: EvalContext) -> dict[str, float]:
    kept = FEATURES if ground.kind == "table" else VALUES
    a, b = x.rows[kept], y.rows[kept]
    found = {}
    for name, measure in MEASURES.items():
        try:
            found[name] = measure(a, b)
        except UserError:  # such as features that do not vary
            continue
    if zero_share(b) >= SPARSE:
        found["zero_error"] = float(((a == 0).double().mean(0) - (b == 0).double().mean(0)).abs().mean())
    return found


def measure_columns(x: SampleStatistics, y: SampleStatistics, ground: EvalContext) -> dict[str, float]:
    gaps = column_gaps(x.rows[VALUES], y.rows[VALUES], categorical=ground.categorical)
    found = {"column_gap": float(gaps.mean()), "largest_column_gap": float(gaps.max())}
    if len(ground.categorical) > 1:
        found["association_error"] = association_error(x.rows[VALUES], y.rows[VALUES], categorical=ground.categorical)
    return found


def unbiased_energy(a: Tensor, b: Tensor) -> float:
    return energy_distance(a, b, unbiased=True)


def measure_within(x: SampleStatistics, y: SampleStatistics, ground: EvalContext) -> dict[str, float]:
    found = {}
    for name in ground.categories:
        sets = [s.take(kept, DISTANCES) for kept in (FEATURES, CONDITION + name) for s in (x, y)]
        try:
            inside = within(unbiased_energy, *sets, at_least=AT_LEAST)
        except UserError:  # no group has so many rows
            continue
        found[f"energy_within_{name}"] = sum(inside.values()) / len(inside)
    return found


KINDS = ("image", "vector", "cells", "table", "sequence")
_NO_IMAGES = KINDS[1:]


@dataclass(frozen=True)
class Score:
    """One measurement.

    Attributes:
        about: what it is, in a few words.
        measure: takes it.
        kinds: the data on which it can be taken.
        usual: those on which it is, where nobody names scores.
        needs: the fewest rows of either set.
        rows: how many rows of either set it looks at, at most; None for all of them.
        values: whether it looks at single values and not at features.
        labels: whether it needs categorical conditions.
    """

    about: str
    measure: Measure
    kinds: Sequence[str] = KINDS
    usual: Sequence[str] = KINDS
    needs: int = 2
    rows: int | None = ROWS
    values: bool = False
    labels: bool = False


SCORES: dict[str, Score] = {
    "frechet": Score("Frechet distance of Gaussians fitted to the features", measure_frechet, rows=None),
    "frechet_infinity": Score(
        "the same, extrapolated to infinitely many samples", measure_frechet_infinity, usual=(), needs=17
    ),
    "kernel": Score(
        "kernel distance, without bias, and its standard error", measure_kernel, usual=("image",), needs=4
    ),
    "manifolds": Score("precision, recall, density and coverage", measure_manifolds, usual=("image",), needs=6),
    "class_shares": Score(
        "how far the shares of classes are from those of training data, as a classifier sees both",
        measure_class_shares,
        usual=("image",),
        rows=DISTANCES,
        labels=True,
    ),
    "sliced_wasserstein": Score(
        "Wasserstein distance over random lines",
        of_features(sliced_wasserstein, "sliced_wasserstein", ROWS),
        usual=_NO_IMAGES,
    ),
    "wasserstein": Score("exact Wasserstein distance", measure_wasserstein, usual=_NO_IMAGES, rows=EXACT),
    "energy": Score(
        "energy distance, without bias",
        of_features(unbiased_energy, "energy", DISTANCES),
        usual=_NO_IMAGES,
        rows=DISTANCES,
    ),
    "mmd": Score(
        "squared maximum mean discrepancy under Gaussian kernels of several widths, without bias",
        of_features(lambda a, b: rbf_mmd(a, b, unbiased=True), "mmd", DISTANCES),
        usual=_NO_IMAGES,
        rows=DISTANCES,
    ),
    "two_sample": Score(
        "how often a classifier tells samples from data; 1/2 is best",
        measure_two_sample,
        usual=_NO_IMAGES,
        needs=20,
        rows=DISTANCES,
    ),
    "marginals": Score(
        "each feature's distribution, mean, variance and zeros, and their correlations",
        measure_marginals,
        kinds=_NO_IMAGES,
        usual=("vector", "cells", "sequence"),
        values=True,
    ),
    "columns": Score(
        "each column's distribution, and the association of each pair",
        measure_columns,
        kinds=("table",),
        usual=("table",),
        values=True,
    ),
    "energy_within": Score(
        "energy distance within each condition",
        measure_within,
        kinds=_NO_IMAGES,
        usual=("cells",),
        rows=DISTANCES,
        labels=True,
    ),
}
"""All measurements that compare samples with a reference."""


def choose_scores(names: Sequence[str] | None, kind: str, *, labels: bool, others: Sequence[str]) -> list[str]:
    """The scores called so, in the order of SCORES, or the usual ones for data of this kind, and of ``others``.

    ``labels`` says whether the data have categorical conditions. Raises UserError for an unknown name, and for a score
    that cannot be taken on such data.
    """
    if names is None:
        return [name for name, s in SCORES.items() if kind in s.usual and (labels or not s.labels)]
    known = (*SCORES, *others)
    for name in names:
        if name not in known:
            raise UserError(f"--metrics {name} is not known{did_you_mean(name, known)}")
        if name in SCORES and kind not in SCORES[name].kinds:
            raise UserError(
                f"--metrics {name} is for {' and '.join(SCORES[name].kinds)} data, and these are {kind} data"
            )
        if name in SCORES and SCORES[name].labels and not labels:
            raise UserError(f"--metrics {name} needs data with a categorical condition, and these have none")
    return [name for name in known if name in names]


def check_enough(names: Sequence[str], sets: Mapping[str, int]) -> None:
    """Raise UserError where a score needs more rows than one of the sets, by what it is called, has."""
    for name in names:
        for what, count in sets.items():
            if name in SCORES and count < SCORES[name].needs:
                raise UserError(
                    f"{what} is {count}, and {name} needs {SCORES[name].needs} rows or more; give more, or name other"
                    " --metrics"
                )


def measure_scores(
    names: Iterable[str], x: SampleStatistics, y: SampleStatistics, ground: EvalContext
) -> dict[str, float]:
    """The numbers of these scores for samples x against the reference y, by name, so far as they are finite."""
    found: dict[str, float] = {}
    for name in names:
        found |= SCORES[name].measure(x, y, ground)
    return {what: value for what, value in found.items() if math.isfinite(value)}
