"""Flow and score matching against known marginal fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import Batch, PathSample
from advect.losses.base import Loss, LossInput
from advect.paths.analytic import AnalyticMarginals
from advect.times import Stratified, TimeDistribution
from advect.weights import Weight


@dataclass(frozen=True, kw_only=True)
class MarginalMatching(Loss):
    """``E w(t) |net(x_t, t) - f_t(x_t)|^2`` with the exact marginal field f of ``law``, x_t ~ p_t.

    ``target`` "velocity" is the flow-matching loss (Lipman et al. 2023), "score" explicit score matching
    (Hyvarinen 2005; Vincent 2011). Conditional losses differ by a constant (Lipman et al. 2023, theorem 2;
    Vincent 2011). Batches only set the number of samples. t stays in [t_eps, 1 - t_eps]. Raises UserError
    for an unknown target.
    """

    law: AnalyticMarginals
    target: Literal["velocity", "score"] = "velocity"
    times: TimeDistribution = field(default_factory=Stratified)
    weight: Weight | None = None
    t_eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.target not in ("velocity", "score"):
            raise UserError(f"MarginalMatching.target must be 'velocity' or 'score', got {self.target!r}")

    @cached_property
    def _times(self) -> TimeDistribution:
        return self.times.within(self.t_eps)

    @torch.no_grad()
    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        """Sample x_t ~ p_t, with its target as ``u_t``; the ends are NaN."""
        t = self._times.sample(len(batch), generator, batch.x1.device)
        x_t = self.law.sample(len(batch), t, generator).to(batch.x1)
        exact = self.law.velocity if self.target == "velocity" else self.law.score
        unknown = torch.full_like(x_t, float("nan"))
        return PathSample(x_t=x_t, t=t, u_t=exact(x_t, t), x0=unknown, x1=unknown), batch.cond

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        loss = (output - sample.u_t).square().flatten(1).mean(1)
        if self.weight is not None:
            loss = loss * self.weight(sample.t).to(loss.dtype)
        return self._times.importance_weight(sample.t, loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self.times.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.times.load_state_dict(state)
