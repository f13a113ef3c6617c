"""How much of the samples is like data, and how much of the data the samples reach: by balls around each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.neighbours import block_rows, nearest_neighbours
from advect.metrics.samples import check_samples

ROUNDING = 1e-12
"""The error of a squared distance by products, as a share of the squares."""


@dataclass(frozen=True)
class Manifolds:
    """Shares of samples and data within balls, each of which reaches to its centre's k-th neighbour in the own set.

    Attributes:
        precision: the share of samples within a ball of data; one outlier's ball can hold them all.
        recall: the share of data within a ball of samples.
        density: in how many balls of data a sample lies, over k; 1 on average where both laws are equal, and it may be
            larger.
        coverage: the share of data with a sample in its ball; see :func:`expected_coverage`.
        k: the neighbour that sets the radius.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


@torch.no_grad()
def manifolds(x: Tensor, y: Tensor, *, k: int = 5, memory_mb: int = 256) -> Manifolds:
    """Compare samples x (N, *S) with data y (M, *S), N and M > k, block by block within about ``memory_mb`` MB.

    Precision and recall are those of Kynkaanniemi et al. (2019, eq. 1 and 2), who took k = 3 at 50,000 samples;
    density and coverage those of Naeem et al. (2020, eq. 4 and 6) with k = 5. All depend on N, M and k: compare at
    equal ones. Raises UserError for sets of k rows or fewer, dimensions that differ and values that are not finite.
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
    balls = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    recalled, covered = (torch.zeros(len(y), dtype=torch.bool, device=x.device) for _ in range(2))
    rows = block_rows(x.shape[1], memory_mb)
    for i in range(0, len(x), rows):
        a = x[i : i + rows].double() - centre
        for j in range(0, len(y), rows):
            nearer = _squares(a, y[j : j + rows].to(x.device).double() - centre)
            inside = nearer <= reach_y[j : j + rows].square()
            balls[i : i + rows] += inside.sum(1)
            covered[j : j + rows] |= inside.any(0)
            recalled[j : j + rows] |= (nearer <= reach_x[i : i + rows, None].square()).any(0)
    share = lambda v: float(v.double().mean())
    return Manifolds(share(balls > 0), share(recalled), share(balls) / k, share(covered), k)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) of a (n, D) and b (m, D), less what rounding may have added, so that copies are in."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(squares, a, b.T, alpha=-2).sub_(squares, alpha=ROUNDING)


def expected_coverage(n: int, m: int, *, k: int = 5) -> float:
    """The mean coverage of m rows of data by n samples of the very same law, which no better samples exceed.

    ``1 - prod_(i = 1..k) (m - i) / (n + m - i)`` in any dimension (Naeem et al. 2020, eq. 10); about 1 - 2^-k for
    n = m. Raises UserError unless n >= 1 and 1 <= k < m.
    """
    if n < 1 or not 1 <= k < m:
        raise UserError(f"n must be >= 1 and k in 1 .. m - 1, got n = {n}, m = {m} and k = {k}")
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (m - i) / (n + m - i)
    return 1 - missed
