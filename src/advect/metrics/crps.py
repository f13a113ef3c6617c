"""Continuous ranked probability score and sharpness of draws."""

from __future__ import annotations

import numpy as np

from advect.core.errors import UserError
from advect.metrics.calibration import Array, Numbers, check_draws


def crps(y: Numbers, draws: Numbers) -> Array:
    """Continuous ranked probability score of each row, in the unit of y; lower is better.

    ``E|X - y| - E|X - X'| / 2`` (Gneiting & Raftery 2007, eq. 21) of y (N,) or (N, D) and draws (N, M) or (N, M, D),
    M >= 2: the fair estimator (Ferro 2014), whose mean does not depend on M and which may be below 0. (N,) or (N, D).

    Raises UserError for one draw, other shapes and values that are not finite.
    """
    true, drawn = check_draws(y, draws, at_least=2)
    m = drawn.shape[1]
    nearness = np.abs(drawn - true[:, None]).mean(1)
    weights = (2 * np.arange(m) - m + 1) / (m * (m - 1))  # E|X - X'| / 2 by order statistics
    # Differences to the first draw are small where the values are not.
    ordered = np.sort(drawn - drawn[:, :1], axis=1)
    found = nearness - np.tensordot(ordered, weights, axes=(1, 0))
    return found[:, 0] if np.ndim(y) == 1 else found


def central_interval(draws: Numbers, level: float = 0.9) -> tuple[Array, Array]:
    """Central interval of each row of draws (N, M) or (N, M, D): quantiles (1 - level) / 2 and (1 + level) / 2.

    By linear interpolation at ranks ``q (M + 1)`` (Hyndman & Fan 1996, type 6): at whole ranks the coverage of exact
    draws is the level for any number of them.

    Raises UserError unless M + 1 >= 2 / (1 - level), where the ends are draws or between two.
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie in (0, 1), got {level}; 0.9 is usual")
    first = np.zeros(len(draws)) if np.ndim(draws) == 2 else np.zeros((len(draws), np.shape(draws)[-1]))
    _, drawn = check_draws(first, draws, at_least=int(np.ceil(2 / (1 - level) - 1e-9)) - 1)
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1, method="weibull")
    low, high = ends[..., 0] if np.ndim(draws) == 2 else ends
    return low, high


def sharpness(draws: Numbers, level: float = 0.9) -> float | Array:
    """Mean width of the central intervals of draws (N, M), or (D,) of draws (N, M, D), in their unit.

    Of two calibrated forecasts the sharper one tells more. Raises UserError as :func:`central_interval`.
    """
    low, high = central_interval(draws, level)
    width = (high - low).mean(0)
    return float(width) if np.ndim(width) == 0 else width
