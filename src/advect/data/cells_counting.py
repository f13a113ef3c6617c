"""Cells as an experiment counts them: whole molecules around an expected expression, with the zeros that brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.data.cell_transforms import Expression


def count_cells(x: Tensor, facts: Mapping[str, Any], generator: Generator = None) -> Tensor:
    """Cells (B, D) with counted molecules, whose expected expression is x (B, D), both in the space of the facts.

    Components, and what a flow makes of them, are smooth: they say how much of a gene a cell is expected to show. What
    is then counted, gene by gene, is close to Poisson (Sarkar & Stephens 2021, "Separating measurement and expression
    models clarifies confusion in single-cell RNA sequencing analysis"). So each cell gets a library size, one of the
    101 stored percentiles of the training cells, and each gene a Poisson count. The rate is not ``expm1(x)``, as the
    logarithm is concave: it is the one for which the mean of the drawn expression is x, or 0 where x < 0.

    Library sizes are drawn apart from x, so that what ties a cell's size to its kind is lost.

    Args:
        x: as ``transform.inverse`` gives it.
        facts: those of ``Cells.facts()`` of components of counts: they say "counted".
        generator: draws sizes and counts.

    Raises:
        UserError: the facts are not those of components of counts.
    """
    if not facts.get("counted"):
        raise UserError("count_cells needs a flow of components of counts (--pca on whole numbers); take x as it is")
    scale = Expression(**facts["expression"])
    expected = scale.forward(x).detach().cpu().double().clamp(min=0).numpy()
    u = random.uniform((len(x),), generator, dtype=torch.float64).numpy()
    chance = random.uniform(x.shape, generator, dtype=torch.float64).numpy()
    sizes = np.asarray(facts["library_quantiles"], np.float64)
    steps = np.ones(1) if scale.target_sum is None else scale.target_sum / sizes
    which = (u * len(steps)).astype(np.int64)
    counts = np.empty_like(expected)
    for i in np.unique(which):
        cells = which == i
        means = _rates(expected[cells], float(steps[i])) if scale.log1p else expected[cells] / steps[i]
        counts[cells] = poisson_quantile(chance[cells], means)
    if scale.space == "expression":
        counts = counts * steps[which][:, None]
        counts = np.log1p(counts) if scale.log1p else counts
    return torch.from_numpy(counts).to(x)


def mean_log(means: np.ndarray, step: float) -> np.ndarray:
    """``E log(1 + step K)`` for Poisson counts K of ``means`` (n,) > 0.

    By ``log(1 + y) = integral of (1 - e^(-y v)) e^(-v) / v`` over v > 0, of which the mean over K has a closed form;
    with v = e^w the trapezoidal rule converges faster than any power.
    """
    low = -18 - np.log(max(1.0, float(means.max()) * step))
    w = np.arange(low, 4, 0.1)
    v = np.exp(w)
    inside = -np.expm1(np.outer(means, np.expm1(-step * v)))
    return 0.1 * (inside @ np.exp(-v))


def _rates(expected: np.ndarray, step: float) -> np.ndarray:
    """The means of Poisson counts K for which ``E log(1 + step K)`` is ``expected`` (n, D) >= 0."""
    last = max(float(expected.max()), 1.0)
    grid = np.exp(np.linspace(-12, last + 1, 400)) / step
    while mean_log(grid[-1:], step)[0] < last:  # few molecules: the logarithm's mean lies far below that of the mean
        grid = np.append(grid, 2 * grid[-1])
    grid = np.concatenate([[0.0], grid])
    return np.interp(expected, np.concatenate([[0.0], mean_log(grid[1:], step)]), grid)


def poisson_quantile(chance: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The smallest k with ``P(K <= k) >= chance``, of Poisson counts of ``means`` >= 0; the same shapes, float64."""
    from scipy.special import pdtr, pdtrik  # a tenth of a second to import

    counts = np.zeros_like(means)
    some = chance > np.exp(-means)  # most are none
    found = np.ceil(pdtrik(chance[some], means[some]))
    counts[some] = found - (pdtr(found - 1, means[some]) >= chance[some])  # the inverse is rounded
    return counts
