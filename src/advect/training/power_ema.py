"""Averages of the weights by a power of time, from a few of which any other is rebuilt.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3 and appendix C.
After t updates the average of exponent gamma is

    integral_0^t p(tau) weights(tau) dtau,    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

Its *length* sigma_rel, the standard deviation of p over t, is a share of the training: 0.05 averages over about the
last tenth, whatever t is. gamma = 0, the plain mean of all weights, has length 1 / sqrt(12) = 0.289.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advect.core.errors import UserError

LONGEST = 1 / math.sqrt(12)
"""The length of the plain mean of all weights, which the averages here stay below."""

_NOTHING = 1e-12
"""Directions in which the stored profiles hardly differ, as a share of the largest, are left out."""


def exponent(length: float) -> float:
    """gamma of a length: the positive root of gamma + 1 = length^2 (gamma + 2)^2 (gamma + 3), equation 123 there.

    Raises UserError where there is none.
    """
    if not 0 < length < LONGEST:
        raise UserError(
            f"an EMA length must be above 0 and below {LONGEST:.3f}, got {length}; it is a share of the training, and "
            "0.05 to 0.15 are usual"
        )
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(roots[np.isreal(roots)].real.max())


def length_of(gamma: float) -> float:
    """The length of an exponent, sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def share(gamma: float, updates: int) -> float:
    """The share of the present weights in the average, 1 - (1 - 1/n)^(gamma + 1) at the n-th update: 1 at the first.

    The average is then that of the integral with weights that stand still between two updates.
    """
    return 1.0 if updates == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / updates))


def _inner(ta: np.ndarray, ga: np.ndarray, tb: np.ndarray, gb: np.ndarray) -> np.ndarray:
    """The integral of p_a p_b, in logarithms as the powers are large.

    (ga + 1) (gb + 1) min(ta, tb)^(ga + gb + 1) / ((ga + gb + 1) ta^(ga + 1) tb^(gb + 1))
    """
    both = ga + gb + 1
    powers = both * np.log(np.minimum(ta, tb)) - (ga + 1) * np.log(ta) - (gb + 1) * np.log(tb)
    return (ga + 1) * (gb + 1) / both * np.exp(powers)


@dataclass(frozen=True)
class Fit:
    """Factors of the stored averages, which sum to 1, and the error of their profile.

    ``error`` is the norm of the difference between the profile wanted and the one rebuilt, over that of the former.
    """

    factors: np.ndarray
    error: float


class Profiles:
    """The profiles of averages stored after ``updates`` with ``lengths``, each a sequence of N numbers."""

    def __init__(self, updates: Sequence[int], lengths: Sequence[float]) -> None:
        exponents = {length: exponent(length) for length in set(lengths)}
        self._t = np.array(updates, np.float64)
        self._gamma = np.array([exponents[length] for length in lengths])
        self._gram = self._against(self._t[:, None], self._gamma[:, None])
        self._norm = np.sqrt(np.diag(self._gram))
        values, vectors = np.linalg.eigh(self._gram / np.outer(self._norm, self._norm))
        kept = values > _NOTHING * values.max()
        self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def _against(self, t: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        return _inner(t, gamma, self._t, self._gamma)

    def fit(self, updates: int, length: float) -> Fit:
        """The combination nearest to the average of ``length`` after ``updates``, in the mean square.

        Its factors are held to a sum of 1, so that weights that stand still are rebuilt as they are.
        """
        t, gamma = np.array(float(updates)), np.array(exponent(length))
        wanted = self._against(t, gamma)
        one = 1 / self._norm
        free, shift = self._inverse @ (wanted / self._norm), self._inverse @ one
        factors = (free + (1 - one @ free) / (one @ shift) * shift) / self._norm
        square = float(_inner(t, gamma, t, gamma))
        left = square - 2 * factors @ wanted + factors @ self._gram @ factors
        return Fit(factors, math.sqrt(max(0.0, left) / square))

    def reach(self, updates: int, error: float) -> tuple[float, float]:
        """The shortest and the longest length around the stored ones that are rebuilt within ``error``."""
        grid = np.round(np.arange(0.005, LONGEST, 0.005), 3).tolist()
        within = [length for length in grid if self.fit(updates, length).error <= error]
        stored = [length_of(gamma) for gamma in self._gamma]
        return min([*within, *stored]), max([*within, *stored])
