"""Posteriors given several independent observations, composed of those given each.

p(theta | x_1 .. x_k) is proportional to p(theta)^(1 - k) prod_i p(theta | x_i), sampled by importance resampling:
proposals are of a Student law around the product of the Gaussians with the moments of each posterior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from advect.sklearn.settings import warn

PROPOSALS, LEAST = 4, 4000
"""Proposals for each draw, and at least."""

_FREEDOM, _WIDER = 5.0, 1.3
"""Degrees of freedom of the Student law, and its scale against that of the product."""

_FEW = 0.05
"""Share of effective proposals below which draws are warned of."""


def product_law(latents: np.ndarray, prior: np.ndarray) -> Any:
    """Proposals of the composed posterior by draws (k, m, d) of each, and (m, d) of the prior."""
    k, _, d = latents.shape
    jitter = 1e-9 * np.eye(d)
    each = [np.linalg.inv(np.atleast_2d(np.cov(z.T)) + jitter) for z in latents]
    base = np.linalg.inv(np.atleast_2d(np.cov(prior.T)) + jitter)
    precision = sum(each) - (k - 1) * base
    values, vectors = np.linalg.eigh(precision)
    floor = max(np.linalg.eigvalsh(p)[0] for p in each)  # observations never tell less than one of them
    precision = (vectors * np.maximum(values, floor)) @ vectors.T
    pull = sum(p @ z.mean(0) for p, z in zip(each, latents, strict=True)) - (k - 1) * base @ prior.mean(0)
    shape = _WIDER**2 * np.linalg.inv(precision)
    student: Any = stats.multivariate_t
    return student(np.linalg.solve(precision, pull), (shape + shape.T) / 2, df=_FREEDOM)


def compose(
    log_target: Callable[[np.ndarray], np.ndarray],
    proposal: Any,
    n: int,
    rng: np.random.RandomState,
) -> tuple[np.ndarray, float]:
    """n draws (n, d) of the density exp(log_target), and the log of its integral. Warns of too few effective ones."""
    many = max(LEAST, PROPOSALS * n)
    z = np.asarray(proposal.rvs(many, random_state=rng)).reshape(many, -1)
    log_weights = log_target(z) - np.asarray(proposal.logpdf(z)).reshape(many)
    largest = log_weights.max()
    weights = np.exp(log_weights - largest)
    total, share = weights.sum(), weights.sum() ** 2 / (weights**2).sum() / many
    if share < _FEW:
        warn(
            f"the composed posterior stands on {share * many:.0f} effective of {many:,} proposals: its draws repeat, "
            "and its density is rough; the observations may contradict each other, or are too many"
        )
    places = np.searchsorted(np.cumsum(weights) / total, (np.arange(n) + rng.uniform()) / n)  # systematic resampling
    return z[rng.permutation(places.clip(max=many - 1))], float(largest + math.log(total / many))
