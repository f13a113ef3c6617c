"""Nearest neighbours; precision, recall, density and coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.statistics import FEATURES, SampleStatistics, check_samples


@dataclass(frozen=True)
class Neighbours:
    """``distances (Q, k)`` float64, nearest first, and ``indices (Q, k)`` int64 into the references."""

    distances: Tensor
    indices: Tensor


@torch.no_grad()
def nearest_neighbours(queries: Tensor, references: Tensor, *, k: int = 1, memory_mb: int = 256) -> Neighbours:
    """The k nearest of references (R, *S) for each of queries (Q, *S).

    Candidates by ``|q|^2 - 2 q r + |r|^2`` in float64, in blocks of about ``memory_mb`` MB; distances by differences,
    so copies are at exactly 0. Raises UserError for different shapes, k outside 1 .. R and non-finite values.
    """
    queries, references = check_samples(queries, "queries"), check_samples(references, "references")
    if queries.shape[1] != references.shape[1]:
        raise UserError(
            f"queries and references must have the same dimension, got {queries.shape[1]} and {references.shape[1]}"
        )
    if not 1 <= k <= len(references):
        raise UserError(f"k must be in 1 .. {len(references)} (the number of references), got {k}")
    if memory_mb < 1:
        raise UserError(f"memory_mb must be at least 1, got {memory_mb}; 256 is usual")
    rows = block_rows(queries.shape[1], memory_mb)
    blocks = [_search(block, references, k, rows) for block in queries.split(rows)]
    return Neighbours(torch.cat([b.distances for b in blocks]), torch.cat([b.indices for b in blocks]))


def block_rows(dimension: int, memory_mb: int) -> int:
    """Largest n for which two blocks (n, D) and two products (n, n) of float64 take ``memory_mb`` MB."""
    budget = memory_mb * 2**20 / 16
    return max(1, int((dimension**2 / 4 + budget) ** 0.5 - dimension / 2))


def _search(queries: Tensor, references: Tensor, k: int, rows: int) -> Neighbours:
    """Neighbours of one block of queries."""
    # Near the origin the squares are small beside the distances, and rounding with them.
    centre = queries.double().mean(0)
    q = queries.double() - centre
    best = torch.full((len(q), 0), torch.inf, dtype=torch.float64, device=q.device)
    index = torch.zeros((len(q), 0), dtype=torch.int64, device=q.device)
    for start in range(0, len(references), rows):
        r = references[start : start + rows].to(q.device).double() - centre
        products = torch.addmm(r.square().sum(1), q, r.T, alpha=-2)  # |r|^2 - 2 q r; |q|^2 does not change the order
        near, place = products.topk(min(k, len(r)), largest=False)
        best, index = torch.cat([best, near], 1), torch.cat([index, place + start], 1)
        best, order = best.topk(min(k, best.shape[1]), largest=False)
        index = index.gather(1, order)
    distances = torch.stack(
        [_distance(queries, references[column].to(q.device)) for column in index.T.to(references.device)], 1
    )
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbours(distances, index.gather(1, order))


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Distances (N,) between the rows of x and y (N, D)."""
    return (x.double() - y.double()).norm(dim=1)


ROUNDING = 1e-12
"""Relative error of squared distances by products."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of samples and data within balls that reach to their centre's ``k``-th neighbour in its set.

    Attributes:
        precision: share of samples within a ball of data.
        recall: share of data within a ball of samples.
        density: number of balls of data around a sample, over k; 1 on average for equal laws.
        coverage: share of data with a sample in its ball; see :func:`expected_coverage`.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    errors: Mapping[str, float] = field(default_factory=dict)
    """Standard errors by name, if asked for."""


@torch.no_grad()
def precision_recall(
    x: Tensor, y: Tensor, *, k: int = 5, memory_mb: int = 256, resamples: int = 0, seed: int = 0
) -> PrecisionRecall:
    """Compare samples x (N, *S) with data y (M, *S), N and M > k, in blocks of about ``memory_mb`` MB.

    Precision and recall: Kynkaanniemi et al. (2019; k = 3 at 50,000 samples). Density and coverage: Naeem
    et al. (2020; k = 5). All depend on N, M and k. Standard errors by ``resamples`` of the rows of both sets
    (bootstrap), with the radii of the balls as they are. Raises UserError for k rows or fewer, different
    dimensions and non-finite values.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}; 5 is usual")
    if memory_mb < 1:
        raise UserError(f"memory_mb must be at least 1, got {memory_mb}; 256 is usual")
    x, y = (check_samples(v, name, at_least=k + 1) for name, v in (("x", x), ("y", y)))
    if x.shape[1] != y.shape[1]:
        raise UserError(f"x and y must have the same features, got {x.shape[1]} and {y.shape[1]}; compare one shape")
    # A set's first neighbour in itself is itself, or a copy of it at the same distance.
    reach_x, reach_y = (nearest_neighbours(v, v, k=k + 1, memory_mb=memory_mb).distances[:, k] for v in (x, y))
    centre = y.double().mean(0)
    w_x, w_y = _weights(len(x), len(y), resamples, seed, x.device)
    balls, within = (torch.zeros(len(x), 1 + resamples, device=x.device) for _ in range(2))
    recalled, covered = (torch.zeros(len(y), 1 + resamples, dtype=torch.bool, device=x.device) for _ in range(2))
    rows = block_rows(x.shape[1], memory_mb)
    for i in range(0, len(x), rows):
        a = x[i : i + rows].double() - centre
        for j in range(0, len(y), rows):
            nearer = _squares(a, y[j : j + rows].to(x.device).double() - centre)
            some, others = w_x[i : i + rows], w_y[j : j + rows]
            inside = (nearer <= reach_y[j : j + rows].square()).float()
            balls[i : i + rows] += inside @ others
            within[i : i + rows] += inside @ (others > 0).float()
            covered[j : j + rows] |= inside.T @ (some > 0).float() > 0
            inside = (nearer <= reach_x[i : i + rows, None].square()).float()
            recalled[j : j + rows] |= inside.T @ (some > 0).float() > 0
    means = lambda v, weights: (v.double() * weights).mean(0)
    found = {"precision": means(within > 0, w_x), "recall": means(recalled, w_y)}
    found |= {"density": means(balls, w_x) / k, "coverage": means(covered, w_y)}
    errors = {name: float(values[1:].std()) for name, values in found.items()} if resamples > 1 else {}
    return PrecisionRecall(**{name: float(values[0]) for name, values in found.items()}, k=k, errors=errors)


def _weights(n: int, m: int, resamples: int, seed: int, device: torch.device) -> list[Tensor]:
    """How often each of n and m rows is drawn: (n, 1 + resamples) and (m, 1 + resamples), first once each."""
    rng = torch.Generator().manual_seed(stream_seed(seed, Stream.BOOTSTRAP) >> 1)
    found = []
    for count in (n, m):
        drawn = [torch.randint(count, (count,), generator=rng).bincount(minlength=count) for _ in range(resamples)]
        found.append(torch.stack([torch.ones(count, dtype=torch.int64), *drawn], 1).float().to(device))
    return found


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) of a (n, D) and b (m, D), less their rounding, so that copies are inside."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(squares, a, b.T, alpha=-2).sub_(squares, alpha=ROUNDING)


def expected_coverage(n: int, m: int, *, k: int = 5) -> float:
    """Mean coverage of m rows by n samples of the same law: ``1 - prod_(i = 1..k) (m - i) / (n + m - i)``.

    In any dimension (Naeem et al. 2020). Raises UserError unless n >= 1 and 1 <= k < m.
    """
    if n < 1 or not 1 <= k < m:
        raise UserError(f"n must be >= 1 and k in 1 .. m - 1, got n = {n}, m = {m} and k = {k}")
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (m - i) / (n + m - i)
    return 1 - missed


@register("manifolds")
class ManifoldMetric(Metric):
    """Precision, recall, density and coverage."""

    at_least = 6
    better = "higher"
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = precision_recall(x.rows[FEATURES], y.rows[FEATURES], resamples=Metric.resamples)
        values = {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}
        return values | {f"{name}_se": error for name, error in found.errors.items()}

    def bounded(self, found: Mapping[str, float]) -> dict[str, float]:
        values = super().bounded(found)  # of all but the density, shares
        highs = {f"{name}_high" for name in ("precision", "recall", "coverage")} & values.keys()
        return values | {name: min(1.0, values[name]) for name in highs}
