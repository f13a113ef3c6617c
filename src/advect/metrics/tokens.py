"""Tokens: the bits that they take, and how often neighbours come together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Stream, stream_seed
from advect.core.registry import register
from advect.core.types import LENGTH
from advect.metrics.base import JUMPS, PAIRS, TOKENS, EvalContext, FlowMetric, Metric
from advect.metrics.statistics import VALUES, SampleStatistics

DRAWS = 16
"""States of each row, of whose loss the bound is the mean."""

ORDERS = {"unigram_tv": 1, "bigram_tv": 2, "trigram_tv": 3}


def ngram_distance(x: Tensor, y: Tensor, order: int) -> float:
    """Total variation, in [0, 1], of the shares of runs of ``order`` tokens in rows x (N, L) and y (M, L).

    Of finite rows it is above 0 also for one law. Padding counts as a token. Raises UserError for rows that are
    shorter, or of other lengths.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] < order:
        raise UserError(f"rows must be (N, L) and (M, L) with L >= {order}, got {tuple(x.shape)} and {tuple(y.shape)}")
    places = torch.cat([x, y]).unique(return_inverse=True)[1]
    count, runs = int(places.max()) + 1, torch.zeros_like(places[:, : places.shape[1] - order + 1])
    for k in range(order):
        runs = runs * count + places[:, k : k + runs.shape[1]]
        runs = runs.unique(return_inverse=True)[1]  # so that no number grows beyond its type
    size = int(runs.max()) + 1
    a, b = (torch.bincount(some.flatten(), minlength=size).double() for some in (runs[: len(x)], runs[len(x) :]))
    return float((a / a.sum() - b / b.sum()).abs().sum() / 2)


@register("ngrams")
class NgramsMetric(Metric):
    """Total variation of single tokens, and of runs of two and three."""

    needs = frozenset({TOKENS})
    rows = PAIRS
    bounds = (0, 1)
    resamples = 8

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        a, b = (s.take(VALUES, PAIRS) for s in (x, y))
        return {name: ngram_distance(a, b, order) for name, order in ORDERS.items() if order <= a.shape[1]}


@register("bits_per_token")
class BitsMetric(FlowMetric):
    """Bits a token of held-out rows, a bound from above."""

    key = "bits_per_token"
    held_out = True
    needs = frozenset({TOKENS, JUMPS})

    def measure(self, flow: Any, n: int, rows: range, data: Callable[[range], Any], options: Any) -> dict[str, Tensor]:
        bits, tokens = [], []
        for first in range(rows.start, rows.stop, 64):
            x, cond = data(range(first, min(first + 64, rows.stop)))
            seed = stream_seed(options.seed, Stream.LIKELIHOOD, first) >> 1
            bits.append(-flow.log_prob_bound(x, cond=cond, draws=DRAWS, seed=seed) / math.log(2))
            tokens.append(cond[LENGTH].values.double() if LENGTH in cond else torch.full((len(x),), float(x.shape[1])))
        return {"bits": torch.cat(bits), "tokens": torch.cat(tokens).double()}

    def reduce(self, parts: Iterator[dict[str, Tensor]], flow: Any) -> dict[str, Any]:
        found = list(parts)
        bits, tokens = (torch.cat([part[name] for part in found]) for name in ("bits", "tokens"))
        mean = bits.sum() / tokens.sum()
        error = (bits - mean * tokens).square().mean().sqrt() / tokens.mean() / len(bits) ** 0.5
        sizes = {"samples": len(bits), "tokens": int(tokens.sum())}
        return {"mean": float(mean), "standard_error": float(error), **sizes, "draws": DRAWS}
