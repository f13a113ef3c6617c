"""Straightness of the paths, and likelihood of held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import ODE, FlowMetric

FEW = 32
"""Most dimensions for an exact divergence."""


@register("straightness")
class StraightnessMetric(FlowMetric):
    """Straightness of the paths from noise to data."""

    key = "straightness"
    needs = frozenset({ODE})

    def measure(self, flow: Any, n: int, rows: range, data: Callable[[range], Any], options: Any) -> dict[str, Tensor]:
        found = flow.straightness(
            n,
            seed=options.seed,
            cond=options.cond,
            guidance=options.sampler.guidance,
            guidance_interval=options.sampler.guidance_interval,
            batch_size=options.batch_size,
            rows=rows,
        )
        return {"sums": torch.tensor([found.value, found.distance, 1.0], dtype=torch.float64) * len(rows)}

    def reduce(self, parts: Iterator[dict[str, Tensor]], flow: Any) -> dict[str, Any]:
        value, distance, n = torch.stack([part["sums"] for part in parts]).sum(0).tolist()
        return {"value": value / n, "relative": value / distance if distance else 0.0, "samples": round(n)}


@register("likelihood")
class LikelihoodMetric(FlowMetric):
    """Bits per dimension of held-out rows, given their conditions.

    Integer grey levels are dequantised uniformly, for an upper bound of the code length (Theis et al. 2016).
    """

    key = "bits_per_dim"
    held_out = density = True
    needs = frozenset({ODE})

    def measure(self, flow: Any, n: int, rows: range, data: Callable[[range], Any], options: Any) -> dict[str, Tensor]:
        found, size = [], min(options.batch_size, 64)
        for first in range(rows.start, rows.stop, size):
            x, cond = data(range(first, min(first + size, rows.stop)))
            if dequantised(flow):
                x = (
                    x
                    + CounterRng(stream_seed(options.seed, Stream.DEQUANTISE), 0, len(x), start=first).uniform(x.shape)
                    - 0.5
                )
            seed = stream_seed(options.seed, Stream.LIKELIHOOD, first) >> 1
            found.append(flow.bits_per_dim(x, cond=cond, trace=_trace(flow), seed=seed))
        return {"bits": torch.cat(found)}

    def reduce(self, parts: Iterator[dict[str, Tensor]], flow: Any) -> dict[str, Any]:
        bits = torch.cat([part["bits"] for part in parts]).double()
        error = float(bits.std()) / len(bits) ** 0.5
        how = {"trace": _trace(flow), "dequantised": dequantised(flow)}
        return {"mean": float(bits.mean()), "standard_error": error, "samples": len(bits), **how}


def dequantised(flow: Any) -> bool:
    """Whether samples are images with integer grey levels, to be dequantised."""
    return bool(getattr(flow.transform, "integer", False))


def _trace(flow: Any) -> str:
    return "exact" if math.prod(flow.spec.shape) <= FEW else "hutchinson"
