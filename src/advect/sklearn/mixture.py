"""Densities and samples of a fit: of an equal mixture of flows, as few rows determine each badly, and in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from advect.data import Transform
from advect.losses.flow_matching import Kind
from advect.model.conditions import Encoded
from advect.model.flow import Flow
from advect.model.given import read_given


def mixed_log_prob(values: Sequence[Tensor]) -> Tensor:
    """Log density (n,) of an equal mixture of densities of log ``values``, each (n,)."""
    return torch.logsumexp(torch.stack(list(values)), 0) - math.log(len(values))


def sample_mixture(
    flows: Sequence[Flow],
    n: int,
    cond: Mapping[str, Encoded],
    rng: np.random.RandomState,
    *,
    given: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """n samples (n, *S), in data units, each of a flow drawn at random, under ``cond`` (n, ...) if any, and ``given``
    entries (1 or n, *S), NaN where asked for.
    """
    known = (
        None if given is None or given.isnan().all() else read_given(flows[0], given.expand(n, *given.shape[1:]), n)
    )
    seed = int(rng.randint(2**31 - 1))
    if len(flows) == 1:
        return flows[0].sample(n, seed=seed, cond=cond or None, given=known, **options).x
    drawn = torch.from_numpy(rng.randint(len(flows), size=n))
    order = torch.argsort(drawn, stable=True)
    parts = []
    for k, flow in enumerate(flows):
        rows = order[drawn[order] == k]
        if len(rows):
            part = {name: Encoded(value.values[rows]) for name, value in cond.items()}
            own = None if known is None else known.rows(rows)
            parts.append(flow.sample(len(rows), seed=(seed + k) % 2**31, cond=part or None, given=own, **options).x)
    return torch.cat(parts)[torch.argsort(order)]


def double_precision(flow: Flow) -> Flow:
    """``flow`` in float64, as float32 sums depend on the number of rows by more than scikit-learn's checks allow."""
    return Flow(
        copy.deepcopy(flow.net).double(),
        flow.spec,
        cast(Transform, _Float64Transform(flow.transform)),
        path=flow.path,
        source=flow.source,
        prediction=cast(Kind, flow.prediction),
        head=flow.head,
        t_eps=flow.t_eps,
        null=flow.null,
        masked=flow.masked,
        device=flow.device,
    )


class _Float64Transform:
    """A transform whose model units are float64."""

    def __init__(self, inner: Transform) -> None:
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x).double()

    def inverse(self, x: Tensor) -> Tensor:
        return self.inner.inverse(x)

    def log_det(self, elements: int) -> float:
        return self.inner.log_det(elements)
