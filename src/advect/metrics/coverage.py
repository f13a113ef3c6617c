"""Coverage of posterior regions and of intervals, with bands and a signed figure of confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.metrics.calibration import (
    REFERENCES,
    Array,
    Numbers,
    as_numbers,
    check_draws,
    cumulative,
    simulation_ranks,
    uniform_band,
    uniformity,
)


@dataclass(frozen=True)
class Coverage:
    """Share of true values inside regions of each credibility level.

    Attributes:
        levels: in (0, 1) (K,).
        covered: share of true values inside (K,).
        low, high: simultaneous 95% band of an exact posterior's (K,).
        error: binomial standard error of an exact posterior's, ``sqrt(l (1 - l) / N)`` (K,).
        excess: mean over all levels of covered less level; negative if over-confident, positive if under-confident.
        excess_error: its standard error for an exact posterior, ``1 / sqrt(12 N)``.
        p_value: Kolmogorov-Smirnov, against exact coverage at all levels.
        rows: N.
    """

    levels: Array
    covered: Array
    low: Array
    high: Array
    error: Array
    excess: float
    excess_error: float
    p_value: float
    rows: int

    @property
    def within(self) -> bool:
        """Whether the curve lies within the band."""
        slack = 1e-12
        return bool((self.covered >= self.low - slack).all() and (self.covered <= self.high + slack).all())


def coverage_of(u: Numbers, *, central: bool = False, seed: int = 0) -> Coverage:
    """Coverage of regions that hold a true value from level u (N,) on; N of 2 or more.

    With ``central`` u are ranks or probability transforms, and the regions the central intervals, which hold the value
    from level ``|2 u - 1|`` on.
    """
    u = as_numbers(u, "u", (1,))
    return _coverage(np.abs(2 * u - 1) if central else u, None, seed)


def density_coverage(log_prob: Numbers, draws_log_prob: Numbers, *, seed: int = 0) -> Coverage:
    """Expected coverage of highest-density regions (Hermans et al. 2022, eq. 3).

    ``log_prob`` (N,) is the posterior's log-density at the true parameters, ``draws_log_prob`` (N, M) that at its own
    draws given the same observation; an unknown constant of each row cancels. -inf is allowed: no density there.
    """
    true, drawn = (_densities(x, name) for x, name in ((log_prob, "log_prob"), (draws_log_prob, "draws_log_prob")))
    return _coverage(1 - simulation_ranks(true, drawn, seed=seed).u[:, 0], None, seed)


def tarp_coverage(theta: Numbers, draws: Numbers, *, references: Numbers | None = None, seed: int = 0) -> Coverage:
    """Coverage of balls around random points, TARP (Lemos et al. 2023, alg. 2), of theta (N, D), draws (N, M, D).

    A row's reference point is by default the parameters of another row, its ball what lies nearer than theta;
    distances are Euclidean after division by each column's standard deviation over theta. Too narrow posteriors put
    theta nearer or farther than most draws: ``excess`` is that of the central intervals of the ball's probability.
    A biased posterior bends ``covered`` to one side, too.

    Posteriors that ignore the observation pass unless ``references`` (N, D) depend on it.

    Raises UserError for fewer than two rows, other shapes and values that are not finite.
    """
    true, drawn = check_draws(theta, draws, "theta")
    n = len(true)
    if n < 2:
        raise UserError(f"theta must have 2 rows or more, got {n}; give more")
    if references is None:
        order = CounterRng(stream_seed(seed, Stream.CALIBRATION, REFERENCES), 0, n).permutation().numpy()
        points = np.empty_like(true)
        points[order] = true[np.roll(order, 1)]
    else:
        points = as_numbers(references, "references", (2,))
        if points.shape != true.shape:
            raise UserError(f"references must have shape {true.shape} as theta, got {points.shape}")
    scale = true.std(0)
    scale = np.where(scale > 0, scale, 1)
    far = np.linalg.norm((true - points) / scale, axis=1)
    far_drawn = np.linalg.norm((drawn - points[:, None]) / scale, axis=2)
    u = simulation_ranks(far, far_drawn, seed=seed).u[:, 0]
    return _coverage(u, np.abs(2 * u - 1), seed)


@dataclass(frozen=True)
class IntervalCoverage:
    """Share of true values in intervals.

    Attributes:
        covered: the share.
        error: binomial standard error, with one row in and one out added (Agresti & Coull 1998), so never 0. Columns
            of a row, which may depend on each other, count as one.
        width: mean width.
        rows: number of rows.
    """

    covered: float
    error: float
    width: float
    rows: int


def interval_coverage(y: Numbers, lower: Numbers, upper: Numbers) -> IntervalCoverage:
    """Share of y within lower to upper, ends included, (N,) or (N, D) each.

    Raises UserError for other shapes, crossed ends and values that are not finite.
    """
    y, lower, upper = check_intervals(lower, upper, y)
    inside = (lower <= y) & (y <= upper)
    n, covered = len(y), float(inside.mean())
    share = (n * covered + 1) / (n + 2)
    return IntervalCoverage(covered, (share * (1 - share) / n) ** 0.5, float((upper - lower).mean()), n)


def check_intervals(lower: Numbers, upper: Numbers, y: Numbers | None = None) -> tuple[Array, Array, Array]:
    """y, lower and upper, (N,) or (N, D) each; without y, lower for it. Raises UserError for others."""
    lower, upper = as_numbers(lower, "lower", (1, 2)), as_numbers(upper, "upper", (1, 2))
    y = lower if y is None else as_numbers(y, "y", (1, 2))
    if not lower.shape == upper.shape == y.shape:
        raise UserError(f"y, lower and upper must have one shape, got {y.shape}, {lower.shape} and {upper.shape}")
    crossed = int((lower > upper).sum())
    if crossed:
        raise UserError(f"lower is above upper in {crossed} of {lower.size} intervals; swap or sort the two")
    return y, lower, upper


def _coverage(u: Array, central: Array | None, seed: int) -> Coverage:
    """Coverage of regions that hold a value from level u (N,) on, confidence by ``central`` instead if given."""
    n = len(u)
    if n < 2:
        raise UserError(f"coverage needs 2 rows or more, got {n}; give more")
    band = uniform_band(n, seed=seed)
    v = u if central is None else central
    return Coverage(
        levels=band.at,
        covered=cumulative(u, band.at),
        low=band.low,
        high=band.high,
        error=np.sqrt(band.at * (1 - band.at) / n),
        excess=float(0.5 - v.mean()),
        excess_error=(12 * n) ** -0.5,
        p_value=uniformity(u).p_value,
        rows=n,
    )


def _densities(x: Numbers, argument: str) -> Array:
    """Log-densities, -inf as a very low one. Raises UserError for NaN and +inf."""
    array = np.array(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x, dtype=np.float64)
    return as_numbers(np.where(array == -np.inf, -np.finfo(np.float64).max, array), argument, (1, 2))
