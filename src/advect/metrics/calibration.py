"""Calibration of draws: ranks of true values among draws, their uniformity, and a verdict in words.

If draws are of the law that the true value follows given the same condition, its rank among them is uniform. Ties are
broken at random and ranks spread over their cells, so that u is exactly uniform on [0, 1) for any number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed

Array = np.ndarray
Numbers = np.ndarray | Tensor | Sequence

ROWS = 100
"""Fewest rows of a verdict: the standard error of a 90% interval's coverage is 3 points there."""

POINTS = 100
"""Most cells of the unit interval for bands."""

SIGNIFICANCE = 0.01
"""Probability of a verdict against exact draws."""

RANKS, REFERENCES, PERMUTED, BAND = range(4)
"""Parts of the stream of random numbers."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of true values among draws.

    Attributes:
        ranks: number of draws below each value (N, D), of equal ones a random number; 0 to ``draws``.
        u: ``(ranks + U) / (draws + 1)`` with U uniform, (N, D) in [0, 1): uniform for exact draws.
        draws: number of draws a row.
    """

    ranks: Array
    u: Array
    draws: int


@dataclass(frozen=True)
class Uniformity:
    """Tests of u (N, D) for uniformity, by column.

    Attributes:
        p_values: of the Kolmogorov-Smirnov test (D,).
        p_value: least of them times D (Bonferroni), at most 1; valid whatever the columns' dependence.
        bias: mean of u less 1/2 (D,); positive where true values lie above the draws.
        bias_error: its standard error for exact draws, ``1 / sqrt(12 N)``.
        spread: mean of ``12 (u - 1/2)^2`` less 1 (D,); positive where draws are too narrow.
        spread_error: its standard error for exact draws, ``sqrt(0.8 / N)``.
        rows: N.
    """

    p_values: Array
    p_value: float
    bias: Array
    bias_error: float
    spread: Array
    spread_error: float
    rows: int


@dataclass(frozen=True)
class Band:
    """Simultaneous band of the empirical distribution function of N uniform numbers.

    Attributes:
        at: points in (0, 1) (K,).
        low, high: ends of the band there (K,).
        level: probability that the function lies within at all points.
    """

    at: Array
    low: Array
    high: Array
    level: float

    def holds(self, u: Numbers) -> bool:
        """Whether the distribution function of u (N,) lies within."""
        found = cumulative(as_numbers(u, "u", (1,)), self.at)
        return bool((found >= self.low - 1e-12).all() and (found <= self.high + 1e-12).all())


def simulation_ranks(theta: Numbers, draws: Numbers, *, seed: int = 0) -> Ranks:
    """Ranks of theta (N, D) among draws (N, M, D) given the same condition (Talts et al. 2018, alg. 1).

    ``seed`` breaks ties. One column may be given as (N,) and (N, M). Raises UserError for other shapes, no rows, and
    values that are not finite.
    """
    true, drawn = check_draws(theta, draws, "theta")
    below, equal = _below(true, drawn)
    rng = _rng(seed, RANKS, len(true))
    ties, within = (rng.uniform(true.shape, dtype=torch.float64).numpy() for _ in range(2))
    ranks = below + np.minimum((ties * (equal + 1)).astype(np.int64), equal)
    u = (ranks + within) / (drawn.shape[1] + 1)
    return Ranks(ranks, np.minimum(u, np.nextafter(1, 0)), drawn.shape[1])


def probability_transform(
    y: Numbers, draws: Numbers | None = None, *, cdf: Callable[[Array], Numbers] | None = None, seed: int = 0
) -> Array:
    """Probability integral transform (Dawid 1984) of y (N,): u (N,), uniform if the law is exact.

    By ``draws`` (N, M), as randomised ranks, or by ``cdf``, which takes y and gives each row's distribution function
    there. Raises UserError unless one of them is given, for other shapes, values that are not finite, and a ``cdf``
    outside [0, 1].
    """
    if (draws is None) == (cdf is None):
        raise UserError("probability_transform needs either draws (N, M) or cdf; give one of them")
    y = as_numbers(y, "y", (1,))
    if draws is not None:
        return simulation_ranks(y, draws, seed=seed).u[:, 0]
    assert cdf is not None
    u = as_numbers(cdf(y), "cdf(y)", (1,))
    if u.shape != y.shape or u.min() < 0 or u.max() > 1:
        raise UserError(
            f"cdf(y) must be {len(y)} probabilities in [0, 1], got shape {u.shape}, {u.min()} to {u.max()}"
        )
    return u


def uniformity(u: Numbers) -> Uniformity:
    """Tests of u (N,) or (N, D) in [0, 1] for uniformity; see :class:`Uniformity`.

    The Kolmogorov-Smirnov p-values are exact up to 10,000 rows, and those of the limit law beyond.
    """
    from scipy.stats import kstest  # takes a second to import

    x = _unit(u)
    n, d = x.shape
    p_values = np.array([float(kstest(column, "uniform").pvalue) for column in x.T])
    return Uniformity(
        p_values=p_values,
        p_value=min(1.0, d * float(p_values.min())),
        bias=x.mean(0) - 0.5,
        bias_error=(12 * n) ** -0.5,
        spread=12 * np.square(x - 0.5).mean(0) - 1,
        spread_error=(0.8 / n) ** 0.5,
        rows=n,
    )


@lru_cache(maxsize=64)
def uniform_band(n: int, *, level: float = 0.95, simulations: int = 4000, seed: int = 0) -> Band:
    """Band for n uniform numbers, by simulation (Saeilynoja, Buerkner & Vehtari 2022, sec. 3.2).

    Unlike the band of the Dvoretzky-Kiefer-Wolfowitz inequality it narrows towards 0 and 1, where draws that are too
    narrow or too wide show. At min(n, 100) - 1 points. Raises UserError for n below 2 and a ``level`` outside (0, 1).
    """
    from scipy.stats import binom  # takes a second to import

    if n < 2 or not 0 < level < 1:
        raise UserError(f"a band needs n >= 2 numbers and a level in (0, 1), got {n} and {level}; 0.95 is usual")
    cells = min(n, POINTS)
    at = np.arange(1, cells) / cells
    rng = np.random.default_rng(stream_seed(seed, Stream.CALIBRATION, BAND))
    counts = rng.multinomial(n, np.full(cells, 1 / cells), size=simulations).cumsum(1)[:, :-1]
    tails = np.ones(simulations)
    for place, column in zip(at, counts.T, strict=True):
        found, where = np.unique(column, return_inverse=True)  # few: each is looked up once
        tails = np.minimum(tails, 2 * np.minimum(binom.cdf(found, n, place), binom.sf(found - 1, n, place))[where])
    gamma = float(np.quantile(tails, 1 - level, method="lower"))
    ends = (at, binom.ppf(gamma / 2, n, at) / n, binom.isf(gamma / 2, n, at) / n)
    for end in ends:
        end.flags.writeable = False  # the cache hands them out again
    return Band(*ends, level)


def cumulative(u: Array, at: Array) -> Array:
    """Empirical distribution function of u (N,) at points (K,)."""
    return np.searchsorted(np.sort(u), at, side="right") / len(u)


Kind = Literal["calibrated", "over-confident", "under-confident", "biased", "miscalibrated"]


@dataclass(frozen=True)
class Verdict:
    """Calibration in words.

    Attributes:
        kind: what is wrong, or "calibrated" if nothing is found.
        sentence: with figures and number of rows.
        advice: what to try; empty if nothing is found.
        coverage: share of rows in the central ``level`` interval of the worst column.
        coverage_error: its standard error.
        level: nominal coverage.
        p_value: of all tests of all columns together, against exact draws.
        rows: number of rows.
        column: the worst column.
    """

    kind: Kind
    sentence: str
    advice: str
    coverage: float
    coverage_error: float
    level: float
    p_value: float
    rows: int
    column: int


_ADVICE: dict[str, str] = {
    "over-confident": "more training rows, a shorter training or a smaller network, more dropout or weight decay; for"
    " intervals ConformalIntervals",
    "under-confident": "train longer, a larger network, less noise added to the data; for intervals"
    " ConformalIntervals",
    "biased": "train longer, a larger network, and a look at whether held-out rows differ from training rows",
    "miscalibrated": "train longer, a larger network, more solver steps, more training rows",
    "calibrated": "",
}


def verdict(u: Ranks | Numbers, *, names: Sequence[str] = (), level: float = 0.9) -> Verdict:
    """Over- or under-confident, biased, or calibrated as far as the rows tell: u (N,) or (N, D), or :class:`Ranks`.

    Three tests a column: Kolmogorov-Smirnov, and normal tests of ``bias`` and ``spread`` (:class:`Uniformity`), which
    name the deviation; together (Bonferroni) they blame exact draws with a probability of at most 1%. ``names`` are
    the columns', ``level`` the interval whose coverage is told.

    Raises UserError for fewer than 100 rows, too few draws for the interval, other shapes and values.
    """
    from scipy.special import ndtr

    if not 0 < level < 1:
        raise UserError(f"level must lie in (0, 1), got {level}; 0.9 is usual")
    if isinstance(u, Ranks):
        needed = math.ceil(2 / (1 - level) - 1e-9) - 1
        if u.draws < needed:
            raise UserError(f"draws must be {needed} or more a row for intervals of {level:.0%}, got {u.draws}")
        u = u.u
    x = _unit(u)
    n, d = x.shape
    if n < ROWS:
        raise UserError(f"{n} rows are too few for a claim of calibration; give {ROWS} or more")
    if names and len(names) != d:
        raise UserError(f"names must be {d}, one a column, got {len(names)}")
    found = uniformity(x)
    z_bias, z_spread = found.bias / found.bias_error, found.spread / found.spread_error
    p = np.stack([found.p_values, 2 * ndtr(-np.abs(z_bias)), 2 * ndtr(-np.abs(z_spread))])
    column = int(p.min(0).argmin())
    p_value = min(1.0, float(p.min()) * p.size)
    kind = "calibrated" if p_value >= SIGNIFICANCE else _kind(x[:, column], z_bias[column], z_spread[column], p.size)
    covered = float((np.abs(2 * x[:, column] - 1) <= level).mean())
    error = (level * (1 - level) / n) ** 0.5
    of = f" of {names[column]}" if names else f" of column {column}" if d > 1 else ""
    figures = (
        f"{level:.0%} intervals{of} cover {covered:.1%} (standard error {error:.1%}), the mean rank is"
        f" {found.bias[column] + 0.5:.3f} (0.5 expected, standard error {found.bias_error:.3f}); {n:,} rows,"
        f" p = {p_value:.2g}"
    )
    said = _SAID["above" if kind == "biased" and z_bias[column] > 0 else "below" if kind == "biased" else kind]
    return Verdict(kind, f"{said}: {figures}", _ADVICE[kind], covered, error, level, p_value, n, column)


_SAID = {
    "calibrated": "No miscalibration found",
    "over-confident": "Over-confident: the draws are too narrow",
    "under-confident": "Under-confident: the draws are too wide",
    "above": "Biased: true values lie above the draws",
    "below": "Biased: true values lie below the draws",
    "miscalibrated": "Miscalibrated: the draws have another shape than the true law",
}


def _kind(u: Array, z_bias: float, z_spread: float, tests: int) -> Kind:
    """The deviation that the tests of bias and spread, of so many ``tests``, show most clearly in u (N,).

    A large bias brings the ranks to one end, which counts as spread, too: then the spread about their mean decides.
    """
    from scipy.special import ndtri

    shown = -ndtri(SIGNIFICANCE / tests / 2)
    if max(abs(z_bias), abs(z_spread)) < shown:
        return "miscalibrated"
    large = 12 * (u.mean() - 0.5) ** 2 > abs(12 * u.var() - 1)
    if abs(z_bias) >= shown and (large or abs(z_bias) > abs(z_spread)):
        return "biased"
    return "over-confident" if z_spread > 0 else "under-confident"


def as_numbers(x: Any, argument: str, dims: Sequence[int]) -> Array:
    """x as float64. Raises UserError for another number of axes than ``dims``, no entries, text, and NaN."""
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    try:
        array = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{argument} must be an array of numbers, got {type(x).__name__} of other entries") from None
    if array.ndim not in dims or not array.size:
        axes = " or ".join(map(str, dims))
        raise UserError(f"{argument} must have {axes} axes and entries, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array.reshape(len(array), -1))).any(1).sum())
        raise UserError(f"{argument} has NaN or infinite values in {bad} of {len(array)} rows; leave those rows out")
    return array


def check_draws(y: Any, draws: Any, name: str = "y", *, at_least: int = 1) -> tuple[Array, Array]:
    """True values (N, D) and draws (N, M, D) of y (N,) or (N, D) and of draws (N, M) or (N, M, D).

    Raises UserError as :func:`as_numbers`, for shapes that do not fit, and fewer than ``at_least`` draws.
    """
    y, drawn = as_numbers(y, name, (1, 2)), as_numbers(draws, "draws", (2, 3))
    true = y[:, None] if y.ndim == 1 else y
    if drawn.ndim == 2 and true.shape[1] == 1:
        drawn = drawn[:, :, None]
    if drawn.ndim != 3 or (len(drawn), drawn.shape[2]) != true.shape:
        fits = f"({len(true)}, M, {true.shape[1]})"
        raise UserError(f"draws must be {fits} for {name} of shape {y.shape}, got shape {np.shape(draws)}")
    if drawn.shape[1] < at_least:
        raise UserError(f"draws must be {at_least} or more a row, got {drawn.shape[1]}")
    return true, drawn


def _below(true: Array, drawn: Array) -> tuple[Array, Array]:
    """Numbers of draws (N, M, D) below and equal to true values (N, D)."""
    return (drawn < true[:, None]).sum(1), (drawn == true[:, None]).sum(1)


def _unit(u: Numbers) -> Array:
    """u as (N, D). Raises UserError outside [0, 1]."""
    x = as_numbers(u, "u", (1, 2))
    if x.min() < 0 or x.max() > 1:
        raise UserError(f"u must lie in [0, 1], got {x.min():g} to {x.max():g}; give simulation_ranks(...).u")
    return x[:, None] if x.ndim == 1 else x


def _rng(seed: int, part: int, count: int) -> CounterRng:
    """Random numbers of ``count`` rows for a part of this module's stream."""
    return CounterRng(stream_seed(seed, Stream.CALIBRATION, part), 0, count)
