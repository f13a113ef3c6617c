"""Conformal recalibration of intervals."""

from __future__ import annotations

import math
from typing import Annotated, Self

import numpy as np
from msgspec import Meta

from advect.core.bounds import bounded
from advect.core.errors import UserError
from advect.metrics.calibration import Array, Numbers, as_numbers
from advect.metrics.coverage import check_intervals

Level = Annotated[float, Meta(gt=0, lt=1)]
"""Probability strictly between 0 and 1."""


@bounded
class ConformalIntervals:
    """Widens, or narrows, intervals so that they cover at least a level, whatever the model's errors.

    Split conformal prediction with the scores of conformalised quantile regression (Romano, Patterson & Candes 2019,
    eq. 6-8): ``max(lower - y, y - upper)`` of rows that no model was fitted to, whose quantile of rank
    ``ceil((n + 1) coverage)`` is added on both sides. The coverage of new exchangeable rows is then at least the level
    on average, over rows and not for each condition; over calibration sets it follows Beta(k, n + 1 - k) for scores
    without ties (Vovk 2012). Several columns are each corrected on their own.

    Args:
        coverage: level, in (0, 1).

    Attributes:
        shift_: what is added on either side, a float, or (D,) for several columns; set by :meth:`fit`.
        rows_: number n of rows.
        rank_: rank k of the score.
    """

    def __init__(self, coverage: Level = 0.9) -> None:
        self.coverage = coverage

    @property
    def least_rows(self) -> int:
        """Fewest rows that the level asks for, ``coverage / (1 - coverage)``."""
        return next(n for n in range(self._about, self._about + 3) if self._rank(n) <= n)

    @property
    def _about(self) -> int:
        return max(1, math.ceil(self.coverage / (1 - self.coverage)) - 1)

    def _rank(self, n: int) -> int:
        """``ceil((n + 1) coverage)``, unmoved by rounding of the product."""
        return max(1, math.ceil((n + 1) * self.coverage * (1 - 1e-12)))

    def fit(self, lower: Numbers, upper: Numbers, y: Numbers) -> Self:
        """From intervals and true values, (N,) or (N, D) each, of rows that the model has not seen.

        Raises UserError for fewer rows than the level asks for, crossed ends, other shapes and values.
        """
        y, lower, upper = check_intervals(lower, upper, y)
        n = len(y)
        rank = self._rank(n)
        if rank > n:
            raise UserError(
                f"{n} rows are too few to recalibrate intervals of {self.coverage:.4g}: give"
                f" {self.least_rows:,} or more, or a lower coverage"
            )
        scores = np.maximum(lower - y, y - upper)
        shift = np.partition(scores, rank - 1, axis=0)[rank - 1]
        self.shift_: float | Array = float(shift) if shift.ndim == 0 else shift
        self.rows_, self.rank_ = n, rank
        return self

    def adjust(self, lower: Numbers, upper: Numbers) -> tuple[Array, Array]:
        """Intervals of the shape given, recalibrated; one that would be empty is its middle.

        Raises UserError before :meth:`fit`, and for another number of columns than there.
        """
        if not hasattr(self, "shift_"):
            raise UserError("ConformalIntervals is not fitted; call fit(lower, upper, y) first")
        lower, upper = as_numbers(lower, "lower", (1, 2)), as_numbers(upper, "upper", (1, 2))
        _, lower, upper = check_intervals(lower, upper)
        if lower.shape[1:] != np.shape(self.shift_):
            raise UserError(
                f"lower and upper must have {np.shape(self.shift_) or 'no'} columns as when fitted, got {lower.shape}"
            )
        middle = lower + (upper - lower) / 2
        return np.minimum(lower - self.shift_, middle), np.maximum(upper + self.shift_, middle)

    def law(self) -> tuple[float, float]:
        """Mean and standard deviation, over calibration sets, of the coverage of new rows, Beta(k, n + 1 - k)."""
        if not hasattr(self, "rank_"):
            raise UserError("ConformalIntervals is not fitted; call fit(lower, upper, y) first")
        a, b = self.rank_, self.rows_ + 1 - self.rank_
        mean = a / (a + b)
        return mean, (mean * (1 - mean) / (a + b + 1)) ** 0.5
