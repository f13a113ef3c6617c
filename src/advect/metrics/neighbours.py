"""Exact nearest neighbours by Euclidean distance, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.samples import check_samples


@dataclass(frozen=True)
class Neighbours:
    """``distances (Q, k)`` float64, nearest first, and ``indices (Q, k)`` int64 into the references."""

    distances: Tensor
    indices: Tensor


@torch.no_grad()
def nearest_neighbours(queries: Tensor, references: Tensor, *, k: int = 1, memory_mb: int = 256) -> Neighbours:
    """Find for each of queries (Q, *S) its k nearest rows of references (R, *S).

    Candidates come from ``|q|^2 - 2 q r + |r|^2`` in float64, block by block within about ``memory_mb`` MB;
    the distances returned are then taken from the differences, so that a copy lies at exactly 0. Raises
    UserError when the shapes differ, k is not in 1 .. R, or a value is not finite.
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
    """The largest n for which two blocks (n, D) and two products (n, n) of float64 take ``memory_mb`` MB."""
    budget = memory_mb * 2**20 / 16
    return max(1, int((dimension**2 / 4 + budget) ** 0.5 - dimension / 2))


def _search(queries: Tensor, references: Tensor, k: int, rows: int) -> Neighbours:
    """The neighbours of one block of queries."""
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
