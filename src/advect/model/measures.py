"""What is measured of a trained flow along its paths: their straightness, and a bound of the likelihood of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from advect.core.bounds import BatchSize, Count, GuidanceScale, SampleCount, Seed, Steps, bounded
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import real_steps, without_padding
from advect.model.conditions import ConditionValue
from advect.model.samples import checked_rows
from advect.paths import MixturePath
from advect.solvers import Straightness, Velocity, deviations
from advect.solvers import log_prob_bound as bound_of

if TYPE_CHECKING:
    from advect.model.flow import Flow


@bounded
@torch.no_grad()
def straightness(
    self: Flow,
    n: SampleCount = 1000,
    *,
    steps: Steps = 100,
    solver: str = "euler",
    seed: Seed = 0,
    cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
    guidance: GuidanceScale = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    batch_size: BatchSize = 256,
    rows: range | None = None,
    progress: bool | tqdm = False,
) -> Straightness:
    """Straightness of the paths of n samples, in model units, see :func:`advect.solvers.straightness`.

    Zero padding counts as elements.
    """
    rows = checked_rows(n, rows)
    self._check_guidance(guidance, guidance_interval)
    conditions, parts = self.conditions(n, cond, seed, rows=rows), []
    way, t0, t1 = self.coordinates, self.coordinates.low, self.coordinates.high
    for x0, part, rng, _ in self._initial_states(n, rows, conditions, seed, batch_size, progress):
        u = self.velocity(part, guidance=guidance, interval=guidance_interval)
        x0 = way.enter(self._field(way, part, guidance, guidance_interval), x0, rng) * way.scale(t0)
        inside: Velocity = lambda x, t, u=u, part=part: without_padding(u(x, t), part)
        parts.append(torch.stack(deviations(inside, x0, steps=steps, solver=solver, t0=t0, t1=t1)).cpu())
    return Straightness.of(*torch.cat(parts, 1))


@bounded
@torch.no_grad()
def log_prob_bound(
    self: Flow,
    x: Tensor,
    *,
    cond: Mapping[str, ConditionValue] | None = None,
    draws: Count = 16,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
) -> Tensor:
    """A bound from below of log p(x) (n,) of tokens x (n, L) in data units, in nats, float64.

    An unbiased estimate of it by ``draws`` states of each sample, see :meth:`advect.paths.MixturePath.bound`. Lengths
    are a condition, ``cond={"length": ...}``, whose own probability is not counted; conditions not in ``cond`` are
    null. Raises UserError for a flow of numbers, and values that are no tokens of the training data.
    """
    path = self.path
    if not isinstance(path, MixturePath):
        raise UserError("log_prob_bound is for flows of tokens, and this one has a density; take log_prob")
    x, given = self._checked(x, self.data_shape), self._given(len(x), cond)
    real, found = real_steps(given, x), []
    x = x if real is None else torch.where(real, x.double(), torch.nan)
    for first in range(0, len(x), batch_size):
        rows = slice(first, min(first + batch_size, len(x)))
        x1 = self.transform.forward(x[rows]).to(self.device)
        rng = CounterRng(stream_seed(seed, Stream.LOG_PROB), 0, len(x1), start=first, total=len(x))
        logits = self.logits(self._on_device({name: value[rows] for name, value in given.items()}))
        found.append(bound_of(logits, path, x1, draws=draws, generator=rng).cpu())
    return torch.cat(found)
