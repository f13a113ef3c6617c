"""Samples of a trained flow given a measurement of them, or known entries, that it was not trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advect.core.bounds import BatchSize, GuidanceScale, Pixels, SampleCount, Seed, Steps, Time, bounded
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Conditions, without_padding
from advect.data.given import check_given
from advect.model.conditions import ConditionValue
from advect.model.given import Given, given_values, known_entries
from advect.model.redraw import Draw, ToData
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
    image_size: tuple[Pixels, Pixels] | None = None,
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
            units, but of whitened data and of components in data units.
        reward: r(x (B, *S)) -> (B,): samples of about p(x) exp(r(x)); of x as for ``measurement``.
        method: a registered posterior or its name, by default "mmps", or "reward".
        steps: default the method's.
        image_size: as of :meth:`sample`; measurement, y and reward are of images of this size.
        model_units: measurement, y, noise, known entries, reward and samples are in model units.

    Raises UserError for a bad argument, such as A(x) of another shape than y, and for another path or source.
    """
    _path(self)
    if isinstance(measurement, Masked) and y is not None and noise == 0:
        y = torch.as_tensor(y)
        y = y if y.is_floating_point() else y.double()
        given, measurement, y = torch.where(measurement.mask, y, torch.nan), None, None
    rows, shape = checked_rows(n, rows), self._shape(image_size, given)
    self._check_guidance(guidance, guidance_interval)
    self._check_memory(len(rows), min(batch_size, len(rows)), shape)
    known = None if given is None else _known(self, given, n, model_units)
    ask = _question(self, n, shape, measurement, y, known, reward, noise, model_units)
    method = get_posterior(method or ("reward" if isinstance(ask, Reward) else "mmps"))
    method.check(ask)
    conditions = self.conditions(n, cond, seed, rows=rows)
    solve = _Solve(self, ask, shape, method, steps, grid, guidance, guidance_interval, rows.start)
    to_data = ToData(self.transform, conditions, known.rows(rows) if known is not None and noise == 0 else None)
    draw = Draw(self, solve, conditions, to_data, n, rows, seed, batch_size)
    calls = method.nfe(steps or method.steps) if progress is not False else None
    x, nfe = draw(shape, model_units=model_units, progress=progress, calls=calls)
    return Samples(without_padding(x, conditions), conditions, nfe, self.spec)


@dataclass(frozen=True)
class _Solve:
    """How rows are drawn, those drawn anew too, from row ``first`` of all on."""

    flow: Flow
    ask: Observation | Reward
    shape: tuple[int, ...]
    method: PosteriorMethod
    steps: int | None
    grid: str | TimeGrid
    guidance: float
    interval: tuple[float, float] | None
    first: int

    def __call__(
        self, x0: Tensor, part: Conditions, rng: CounterRng, at: Tensor, each: Callable[[], object]
    ) -> tuple[Tensor, int]:
        flow, ask = self.flow, self.ask
        with flow._full_precision() as exact:
            denoised = exact.denoiser(part, guidance=self.guidance, interval=self.interval)
            field = CountedVelocity(lambda x, t: without_padding(denoised(x, t), part), each)
            x = posterior_sample(
                field,
                x0,
                ask if isinstance(ask, Reward) else ask.rows(self.first + at, self.shape),
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
    """Known entries; none in model units that mix them. Raises UserError for another shape, and if none or all are
    known.
    """
    if not model_units and flow.transform.mixes:
        own = given_values(flow, given, n)
        check_given(own, flow.data_shape)
        return Given(own.new_full((n, *flow.spec.shape), torch.nan), own)
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
    shape: tuple[int, ...],
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
    device = flow.device
    if known is not None:
        if not model_units and (mixes := flow.transform.mixes):
            most, size = int((~known.own.isnan()).flatten(1).sum(1).max()), known.model[0].numel()
            if most > size and noise == 0:
                raise UserError(
                    f"given knows {most} entries, which the {size} {mixes} of these data cannot meet exactly; give "
                    "noise, their deviation from the data"
                )
            inside = Through(Masked(~known.own.isnan()), flow.transform.unrounded)
            return Observation.of(inside, known.own, noise, n, shape, device)
        return Observation.of(Masked(~known.model.isnan()), known.model, noise, n, shape, device)
    unrounded = (lambda x: x) if model_units else flow.transform.unrounded
    if reward is not None:
        if noise != 0:
            raise UserError(f"noise is {noise}, but a reward has none; leave it out")
        asked = Reward(lambda x: reward(unrounded(x)))
        asked.check(shape, device)
        return asked
    a = as_measurement(measurement)
    return Observation.of(a if model_units else Through(a, unrounded), y, noise, n, shape, device)
