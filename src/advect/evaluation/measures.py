"""How each score of an evaluation is taken: from two summaries and what their comparisons share to numbers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.evaluation.judge import Judge
from advect.evaluation.marginals import MEASURES, SPARSE
from advect.evaluation.summary import CONDITION, FEATURES, VALUES, Summary
from advect.metrics import (
    association_error,
    class_shares,
    column_gaps,
    energy_distance,
    frechet_at_infinity,
    kernel_distance,
    manifolds,
    two_sample_test,
    wasserstein,
    within,
    zero_share,
)

DISTANCES, EXACT, AT_LEAST = 5000, 2000, 20
"""Rows for distances between all pairs and for exact transport; rows that a group needs to be compared within."""


@dataclass(frozen=True)
class Ground:
    """What all comparisons of one evaluation share.

    Attributes:
        kind: of the data: "image", "vector", "cells", "table" or "sequence".
        train, held_out: rows of either split; one is the reference, and the floor compares it with the other.
        categories: the data's categorical conditions.
        categorical: of a table, whether each column is one.
        standardise: whether features have units of their own.
    """

    kind: str
    train: Summary
    held_out: Summary
    categories: Mapping[str, Category]
    categorical: tuple[bool, ...] = ()
    standardise: bool = False

    @cached_property
    def judges(self) -> dict[str, tuple[Judge, Tensor]]:
        """For each categorical condition a classifier fitted to held-out rows, and what it sees in training rows."""
        found = {}
        for name in self.categories:
            data = self.held_out.take(FEATURES, DISTANCES), self.held_out.take(CONDITION + name, DISTANCES)
            judge = Judge.fit(data, features=lambda x: x, standardise=self.standardise)
            if judge is not None:
                found[name] = judge, judge(self.train.take(FEATURES, DISTANCES))
        return found


Measure = Callable[[Summary, Summary, Ground], dict[str, float]]
"""From samples, reference and ground to numbers by name."""


def of_features(measure: Callable[[Tensor, Tensor], float], name: str, rows: int) -> Measure:
    """A measure of features alone."""
    return lambda x, y, _: {name: measure(x.take(FEATURES, rows), y.take(FEATURES, rows))}


def measure_wasserstein(x: Summary, y: Summary, _: Ground) -> dict[str, float]:
    k = min(EXACT, x.count, y.count)  # transport pairs each row with one
    return {"wasserstein": wasserstein(x.take(FEATURES, k), y.take(FEATURES, k))}


def measure_frechet(x: Summary, y: Summary, _: Ground) -> dict[str, float]:
    return {"frechet": x.gaussian.distance(y.gaussian)}


def measure_frechet_infinity(x: Summary, y: Summary, _: Ground) -> dict[str, float]:
    return {"frechet_infinity": frechet_at_infinity(x.rows[FEATURES], y.gaussian).value}


def measure_kernel(x: Summary, y: Summary, _: Ground) -> dict[str, float]:
    found = kernel_distance(x.rows[FEATURES], y.rows[FEATURES])
    return {"kernel": found.value, "kernel_se": found.standard_error}


def measure_manifolds(x: Summary, y: Summary, _: Ground) -> dict[str, float]:
    found = manifolds(x.rows[FEATURES], y.rows[FEATURES])
    return {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}


def measure_class_shares(x: Summary, y: Summary, ground: Ground) -> dict[str, float]:
    """Against training rows, as the classifier was fitted to held-out ones; of data it is what chance alone makes."""
    shares = {}
    for name, (judge, real) in ground.judges.items():
        floor = x is ground.train or x is ground.held_out
        seen = real if floor else judge(x.take(FEATURES, DISTANCES))
        found = class_shares(seen, real, classes=len(ground.categories[name].names))
        shares[f"class_shares_{name}"] = found.floor if floor else found.distance
    return shares


def measure_two_sample(x: Summary, y: Summary, _: Ground) -> dict[str, float]:
    found = two_sample_test(x.take(FEATURES, DISTANCES), y.take(FEATURES, DISTANCES))
    return {"two_sample": found.accuracy}


def measure_marginals(x: Summary, y: Summary, ground: Ground) -> dict[str, float]:
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


def measure_columns(x: Summary, y: Summary, ground: Ground) -> dict[str, float]:
    gaps = column_gaps(x.rows[VALUES], y.rows[VALUES], categorical=ground.categorical)
    found = {"column_gap": float(gaps.mean()), "largest_column_gap": float(gaps.max())}
    if len(ground.categorical) > 1:
        found["association_error"] = association_error(x.rows[VALUES], y.rows[VALUES], categorical=ground.categorical)
    return found


def unbiased_energy(a: Tensor, b: Tensor) -> float:
    return energy_distance(a, b, unbiased=True)


def measure_within(x: Summary, y: Summary, ground: Ground) -> dict[str, float]:
    found = {}
    for name in ground.categories:
        sets = [s.take(kept, DISTANCES) for kept in (FEATURES, CONDITION + name) for s in (x, y)]
        try:
            inside = within(unbiased_energy, *sets, at_least=AT_LEAST)
        except UserError:  # no group has so many rows
            continue
        found[f"energy_within_{name}"] = sum(inside.values()) / len(inside)
    return found
