"""The numbers of an evaluation by name: what each needs, and on which data it is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from advect.core.errors import UserError, did_you_mean
from advect.evaluation.measures import (
    DISTANCES,
    EXACT,
    Ground,
    Measure,
    measure_class_shares,
    measure_columns,
    measure_frechet,
    measure_frechet_infinity,
    measure_kernel,
    measure_manifolds,
    measure_marginals,
    measure_two_sample,
    measure_wasserstein,
    measure_within,
    of_features,
    unbiased_energy,
)
from advect.evaluation.summary import ROWS, Summary
from advect.metrics import rbf_mmd, sliced_wasserstein

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


def measure_scores(names: Iterable[str], x: Summary, y: Summary, ground: Ground) -> dict[str, float]:
    """The numbers of these scores for samples x against the reference y, by name, so far as they are finite."""
    found: dict[str, float] = {}
    for name in names:
        found |= SCORES[name].measure(x, y, ground)
    return {what: value for what, value in found.items() if math.isfinite(value)}
