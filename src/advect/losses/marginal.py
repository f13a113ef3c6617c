"""The losses that conditional flow and score matching stand in for, where the marginals are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import Batch, Network
from advect.losses.base import Loss
from advect.paths.analytic import AnalyticMarginals
from advect.times import Stratified, TimeDistribution
from advect.weights import Weight


@dataclass(frozen=True, kw_only=True)
class MarginalMatching(Loss):
    """``E w(t) |net(x_t, t) - f_t(x_t)|^2`` with the exact marginal field f of ``law``, x_t ~ p_t.

    ``target`` "velocity" gives the flow-matching loss (Lipman et al. 2023, eq. 5), "score" explicit score matching
    (Hyvarinen 2005; Vincent 2011, eq. 8). The conditional losses differ from these by a constant in the network's
    parameters, so their gradients agree (Lipman et al. 2023, theorem 2; Vincent 2011, eq. 11). A batch gives only its
    number of samples. t stays within [margin, 1 - margin]. Raises UserError for an unknown target.
    """

    law: AnalyticMarginals
    target: Literal["velocity", "score"] = "velocity"
    times: TimeDistribution = field(default_factory=Stratified)
    weight: Weight | None = None
    margin: float = 1e-3

    def __post_init__(self) -> None:
        if self.target not in ("velocity", "score"):
            raise UserError(f"MarginalMatching.target must be 'velocity' or 'score', got {self.target!r}")

    def __call__(self, net: Network, batch: Batch, generator: Generator = None) -> Tensor:
        t = self.times.sample(len(batch), generator, batch.x1.device).clamp(self.margin, 1 - self.margin)
        with torch.no_grad():
            x_t = self.law.sample(len(batch), t, generator).to(batch.x1)
            field_at = self.law.velocity if self.target == "velocity" else self.law.score
            wanted = field_at(x_t, t)
        loss = (net(x_t, t, batch.cond) - wanted).square().flatten(1).mean(1)
        if self.weight is not None:
            loss = loss * self.weight(t).to(loss.dtype)
        return self.times.importance_weight(t, loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self.times.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.times.load_state_dict(state)
