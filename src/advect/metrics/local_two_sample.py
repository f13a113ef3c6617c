"""Local classifier two-sample test: whether a posterior is right at one observation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.metrics.calibration import PERMUTED, Array, Numbers, as_numbers

QUADRATIC_COLUMNS = 32
"""Most columns of theta and x together whose squares and products the default classifier takes."""


@dataclass(frozen=True)
class LocalTest:
    """Local classifier two-sample test.

    Attributes:
        statistic: mean square of the classifier's probabilities less 1/2, at draws given the observation; 0 is best.
        null: the same under the hypothesis that the posterior is exact everywhere (P,).
        p_value: share of ``null`` and the statistic itself that is as large.
        probabilities: of having been drawn from the model, at the draws (M,); above 1/2 where it has too much mass.
    """

    statistic: float
    null: Array
    p_value: float
    probabilities: Array


def local_two_sample_test(
    theta: Numbers,
    x: Numbers,
    draws: Numbers,
    x_observed: Numbers,
    observed_draws: Numbers,
    *,
    classifier: Any = None,
    permutations: int = 99,
    seed: int = 0,
) -> LocalTest:
    """Test a posterior at one observation (Linhart, Gramfort & Rodrigues 2023, alg. 1).

    A classifier learns to tell pairs (theta, x) of the joint law from pairs (draw, x) of the model, and is asked
    at ``x_observed``. Under the null hypothesis theta and draw of a row may be swapped: ``permutations`` classifiers
    learn from rows swapped at random, so that the p-value is exact. No rejection holds for this classifier only.

    Args:
        theta: parameters (N, D) of N >= 20 simulations.
        x: their observations (N, K), as features; constant columns do no harm.
        draws: one draw (N, D) of the posterior given each row of x.
        x_observed: the observation (K,).
        observed_draws: draws (M, D) of the posterior given it.
        classifier: scikit-learn classifier with ``predict_proba``, cloned. Default: logistic regression on
            standardised columns, their squares and products, which sees means, variances and correlations that change
            linearly with x; without squares and products beyond 32 columns. For other shapes give such as
            ``MLPClassifier`` or ``HistGradientBoostingClassifier``.
        permutations: number of swapped classifiers; the least p-value is 1 over one more.
        seed: seed of the swaps.

    Raises:
        UserError: too few rows, shapes that do not fit, values that are not finite.
    """
    from sklearn.base import clone

    theta, x, draws = (as_numbers(v, name, (2,)) for v, name in ((theta, "theta"), (x, "x"), (draws, "draws")))
    at, observed = as_numbers(x_observed, "x_observed", (1,)), as_numbers(observed_draws, "observed_draws", (2,))
    n, d = theta.shape
    if n < 20 or len(x) != n or draws.shape != theta.shape:
        raise UserError(
            f"theta, x and draws must have 20 rows or more, one a simulation, got {theta.shape}, {x.shape} and"
            f" {draws.shape}; give one draw for each row"
        )
    if observed.shape[1] != d or at.shape != x.shape[1:]:
        raise UserError(
            f"observed_draws must be (M, {d}) and x_observed ({x.shape[1]},), got {observed.shape} and {at.shape}"
        )
    if permutations < 19:
        raise UserError(f"permutations must be 19 or more for p-values of 0.05, got {permutations}; 99 is usual")
    judge = _default(d + x.shape[1]) if classifier is None else classifier
    asked = np.hstack([observed, np.broadcast_to(at, (len(observed), len(at)))])
    kind = np.repeat([0, 1], n)
    rng = CounterRng(stream_seed(seed, Stream.CALIBRATION, PERMUTED), 0, n)

    def ask(first: Array, second: Array) -> Array:
        fitted: Any = clone(judge)
        fitted.fit(np.vstack([np.hstack([first, x]), np.hstack([second, x])]), kind)
        return fitted.predict_proba(asked)[:, 1]

    probabilities = ask(theta, draws)
    score = lambda p: float(np.square(p - 0.5).mean())
    null = np.empty(permutations)
    for i in range(permutations):
        swap = rng.uniform((n, 1), dtype=torch.float64).numpy() < 0.5
        null[i] = score(ask(np.where(swap, draws, theta), np.where(swap, theta, draws)))
    statistic = score(probabilities)
    p_value = (1 + int((null >= statistic).sum())) / (1 + permutations)
    return LocalTest(statistic, null, p_value, probabilities)


def _default(columns: int) -> Any:
    """Logistic regression on columns, with products of two where there are few."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler  # take a second to import

    products = [PolynomialFeatures(2, include_bias=False)] if columns <= QUADRATIC_COLUMNS else []
    return make_pipeline(StandardScaler(), *products, StandardScaler(), LogisticRegression(max_iter=200))
