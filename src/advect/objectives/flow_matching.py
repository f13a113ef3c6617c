"""Conditional flow matching."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advect.core.conditions import drop_conditions
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import Batch, Network
from advect.couplings import Coupling, Independent
from advect.objectives.base import Objective
from advect.paths import AffinePath
from advect.sources import Gaussian, SourceDistribution
from advect.times import Stratified, TimeDistribution


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Objective):
    """``E |net(x_t, t, cond) - u_t|^2``, the mean over the elements of a sample.

    Lipman et al. 2023, "Flow matching for generative modeling", eq. 9; with the default path the rectified
    flow of Liu et al. 2023. ``cond_dropout`` in [0, 1] is the share of samples trained without their
    conditions, which classifier-free guidance needs (Ho & Salimans 2022).
    """

    path: AffinePath = field(default_factory=AffinePath)
    source: SourceDistribution = field(default_factory=Gaussian)
    coupling: Coupling = field(default_factory=Independent)
    times: TimeDistribution = field(default_factory=Stratified)
    cond_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.cond_dropout <= 1:
            raise UserError(f"FlowMatching.cond_dropout must lie in [0, 1], got {self.cond_dropout}; 0.1 is usual")

    def __call__(self, net: Network, batch: Batch, generator: Generator = None) -> Tensor:
        x0 = self.source.sample_like(batch.x1, generator)
        x0, x1, cond = self.coupling.pair(x0, batch.x1, batch.cond, generator)
        t = self.times.sample(len(x1), generator, x1.device)
        point = self.path.sample(x0, x1, t, generator)
        cond = drop_conditions(cond, self.cond_dropout, generator)
        return (net(point.x_t, t, cond) - point.u_t).square().flatten(1).mean(1)
