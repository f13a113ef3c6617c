"""Samples of a trained flow given a measurement of them, or known entries, that it was not trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advect.core.bounds import BatchSize, GuidanceScale, SampleCount, Seed, Steps, Time, bounded
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Conditions, without_padding
from advect.data.given import check_given
from advect.model.conditions import ConditionValue
from advect.model.given import Given, known_entries
from advect.model.redraw import Redraw, ToData
from advect.model.samples import Samples, checked_rows
from advect.paths import AffinePath
from advect.solvers import TimeGrid
from advect.solvers.integrate import CountedVelocity
from advect.solvers.posterior import (
    Masked,
    Measurement,
    Observation,
    PosteriorMethod,
    Reward,
    Through,
    as_measurement,
    get_posterior,
    posterior_sample,
)
from advect.sources import Gaussian

if TYPE_CHECKING:
    from advect.model.flow import Flow


@bounded
@torch.no_grad()
def sample_posterior(
    self: Flow,
    n: SampleCount,
    *,
    measurement: Measurement | Tensor | np.ndarray | Callable[[Tensor], Tensor] | None = None,
    y: Tensor | np.ndarray | Sequence | None = None,
    given: Any = None,
    reward: Callable[[Tensor], Tensor] | None = None,
    noise: float = 0.0,
    method: str | PosteriorMethod | None = None,
    steps: Steps | None = None,
    grid: str | TimeGrid = "uniform",
    seed: Seed = 0,
    cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
    guidance: GuidanceScale = 1.0,
    guidance_interval: tuple[Time, Time] | None = None,
    batch_size: BatchSize = 256,
    rows: range | None = None,
    model_units: bool = False,
    progress: bool | tqdm = False,
) -> Samples:
    """Sample n samples (n, *S) given a measurement, known entries or a log-reward; otherwise as :meth:`sample`.

    Needs an affine path from Gaussian noise drawn apart from the data. In float32, with the network's derivative.

    Args:
        measurement: A of ``y = A(x) + N(0, noise^2)``, differentiable: a matrix, a function A(x (B, *S)) -> (B, *M),
            or a part such as ``Blur`` of :mod:`advect.solvers.posterior`; of samples in data units, not rounded.
        y: (*M), or one each (n, *M), with the deviation ``noise``.
        given: known entries as for :meth:`sample`; without noise they come back exactly. Here noise is in model
            units.
        reward: r(x (B, *S)) -> (B,): samples of about p(x) exp(r(x)); of x as for ``measurement``.
        method: a registered posterior or its name, by default "mmps", or "reward".
        steps: default the method's.
        model_units: measurement, y, noise, known entries, reward and samples are in model units.

    Raises UserError for a bad argument, such as A(x) of another shape than y, and for another path or source.
    """
    _path(self)
    shape = self.spec.shape
    if isinstance(measurement, Masked) and y is not None and noise == 0:
        y = torch.as_tensor(y)
        y = y if y.is_floating_point() else y.double()
        given, measurement, y = torch.where(measurement.mask, y, torch.nan), None, None
    rows = checked_rows(n, rows)
    self._check_guidance(guidance, guidance_interval)
    self._check_memory(len(rows), min(batch_size, len(rows)), shape)
    known = None if given is None else _known(self, given, n, model_units)
    ask = _question(self, n, measurement, y, known, reward, noise, model_units)
    method = get_posterior(method or ("reward" if isinstance(ask, Reward) else "mmps"))
    method.check(ask)
    conditions, parts, evaluations = self.conditions(n, cond, seed, rows=rows), [], 0
    calls, first = method.nfe(steps or method.steps) if progress is not False else None, 0
    solve = _Solve(self, ask, method, steps, grid, guidance, guidance_interval, rows.start)
    for x0, part, rng, done in self._initial_states(n, rows, conditions, seed, batch_size, progress, shape, calls):
        x, cost = solve(x0, part, rng, torch.arange(first, first + len(x0)), done.step)
        parts.append(x)
        evaluations, first = evaluations + cost, first + len(x0)
    x = torch.cat(parts)
    known = known.rows(rows) if known is not None and noise == 0 else None
    x = x if known is None else known.put(x)
    if not model_units:
        to_data = ToData(self.transform, conditions, known)
        x = to_data(x)
        if self.transform.constraints is not None:
            x, more = Redraw(self, solve, conditions, to_data, n, rows, seed, batch_size)(x)
            evaluations += more
    nfe = evaluations / len(rows)
    return Samples(without_padding(x, conditions), conditions, int(nfe) if nfe.is_integer() else nfe, self.spec)


@dataclass(frozen=True)
class _Solve:
    """How rows are drawn, those of :class:`Redraw` too, from row ``first`` of all on."""

    flow: Flow
    ask: Observation | Reward
    method: PosteriorMethod
    steps: int | None
    grid: str | TimeGrid
    guidance: float
    interval: tuple[float, float] | None
    first: int

    def __call__(
        self, x0: Tensor, part: Conditions, rng: CounterRng, at: Tensor, each: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, int]:
        flow, ask = self.flow, self.ask
        with flow._full_precision() as exact:
            denoised = exact.denoiser(part, guidance=self.guidance, interval=self.interval)
            field = CountedVelocity(lambda x, t: without_padding(denoised(x, t), part), each)
            x = posterior_sample(
                field,
                x0,
                ask if isinstance(ask, Reward) else ask.rows(self.first + at, flow.spec.shape),
                method=self.method,
                schedule=_path(flow).effective_schedule,
                steps=self.steps,
                grid=self.grid,
                inside=(flow._t_eps, 1 - flow._t_eps),
                generator=rng,
            )
        return x.float().cpu(), field.rows


def _path(flow: Flow) -> AffinePath:
    """The path, if p(x_t | x_1) is Gaussian on it."""
    path = flow.path
    if isinstance(path, AffinePath) and path.gaussian_source and isinstance(flow.source, Gaussian):
        return path
    raise UserError(
        "posterior sampling needs an affine path from Gaussian noise drawn apart from the data, and this flow has "
        f"another path, source or coupling ({path}, {type(flow.source).__name__}); train with --path cond-ot "
        "--coupling independent"
    )


def _known(flow: Flow, given: Any, n: int, model_units: bool) -> Given:
    """Known entries. Raises UserError for another shape, and if none or all are known."""
    if not model_units:
        return known_entries(flow, given, n)
    x, shape = torch.as_tensor(given, dtype=torch.float32), flow.spec.shape
    x = x.expand(n, *shape) if x.shape == shape else x
    if x.shape != (n, *shape):
        raise UserError(f"given must have shape {shape}, or {(n, *shape)} for {n} samples, got {tuple(x.shape)}")
    check_given(x, shape)
    return Given(x, x)


def _question(
    flow: Flow,
    n: int,
    measurement: Any,
    y: Any,
    known: Given | None,
    reward: Callable[[Tensor], Tensor] | None,
    noise: float,
    model_units: bool,
) -> Observation | Reward:
    """What is asked, of samples in model units."""
    if sum(what is not None for what in (measurement, known, reward)) != 1:
        raise UserError("give one of measurement (with y), given and reward")
    if (y is None) != (measurement is None):
        raise UserError("measurement and y belong together; give both, or neither")
    shape, device = flow.spec.shape, flow.device
    if known is not None:
        return Observation.of(Masked(~known.model.isnan()), known.model, noise, n, shape, device)
    unrounded = (lambda x: x) if model_units else flow.transform.unrounded
    if reward is not None:
        if noise != 0:
            raise UserError(f"noise is {noise}, but a reward has none; leave it out")
        return Reward(lambda x: reward(unrounded(x)))
    a = as_measurement(measurement)
    return Observation.of(a if model_units else Through(a, unrounded), y, noise, n, shape, device)
