"""Samples against data feature by feature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.evaluation.drawing import rows
from advect.metrics import correlation_error, kolmogorov_smirnov, mean_r2, variance_r2, zero_share

FEATURES = 1000
"""At most so many features, evenly chosen, are looked at; their correlations are as many squared."""

SPARSE = 0.01
"""Zeros are counted where at least this share of the held-out values is zero."""

MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "kolmogorov_smirnov": lambda x, y: float(kolmogorov_smirnov(x, y).mean()),
    "correlation_error": correlation_error,
    "mean_r2": mean_r2,
    "variance_r2": variance_r2,
}


def measure_marginals(
    samples: Tensor, train: Tensor, held_out: Tensor, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compare samples (n, D) with held_out (M, D), and as many rows of train (N, D) with it, which is the floor.

    For each measure of ``advect.metrics`` that is defined, its values "samples" and "floor"; "zero_share", where
    the data have zeros, is not against held-out data, whose own share is "held_out".
    """
    chosen = torch.linspace(0, samples.shape[1] - 1, min(FEATURES, samples.shape[1])).round().long()
    x, y = samples[:, chosen], held_out[:, chosen]
    real = train[rows(len(train), len(samples), seed)][:, chosen]
    found: dict[str, dict[str, float]] = {}
    for name, measure in MEASURES.items():
        try:
            found[name] = {"samples": measure(x, y), "floor": measure(real, y)}
        except UserError:  # such as features that do not vary
            continue
    if zero_share(y) >= SPARSE:
        found["zero_share"] = {"samples": zero_share(x), "floor": zero_share(real), "held_out": zero_share(y)}
    return found
