"""Equal mixtures of flows: few rows determine each badly, and their mean density better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.model.conditions import Encoded
from advect.model.flow import Flow


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
    known = None if given is None or given.isnan().all() else given.expand(n, *given.shape[1:])
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
            own = None if known is None else known[rows]
            parts.append(flow.sample(len(rows), seed=(seed + k) % 2**31, cond=part or None, given=own, **options).x)
    return torch.cat(parts)[torch.argsort(order)]
