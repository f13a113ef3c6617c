"""A trained flow: sample from it, encode data, and ask for densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advect.core import random
from advect.core.conditions import is_null, real_steps
from advect.core.errors import UserError
from advect.core.random import CounterRng, mix
from advect.core.types import LENGTH, Conditions, DataSpec
from advect.data import Transform
from advect.objectives.flow_matching import Kind
from advect.paths import AffinePath, Bridge, Path, Schedule
from advect.runs.conditions import ConditionValue, resolve_conditions
from advect.sampling import (
    Velocity,
    bits_per_dim,
    get_solver,
    guided_velocity,
    integrate,
    integrate_sde,
    log_prob,
    standard_normal_log_prob,
)
from advect.sources import Gaussian, SourceDistribution


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a flow is followed when a caller says nothing else: solver, its steps and where they lie."""

    solver: str = "midpoint"
    steps: int = 50
    grid: str = "uniform"


class Flow:
    """A network with what sampling needs: the data's shape, conditions and transform, the path and its source.

    ``net(x_t (B, *S), t (B,), cond)`` gives the ``prediction`` in model units. ``margin`` is the objective's: how far
    t stays from 0 and 1 where a conversion or the path is infinite. ``null`` says that the network was trained without
    its conditions, too, which guidance and unconditional samples need.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: DataSpec,
        transform: Transform,
        *,
        path: Path | None = None,
        source: SourceDistribution | None = None,
        prediction: Kind = "velocity",
        margin: float = 1e-3,
        null: bool = True,
        sampler: Sampler | None = None,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        facts: dict | None = None,
    ) -> None:
        self.net, self.spec, self.transform = net, spec, transform
        self.facts = facts or {}
        self.path, self.source, self.prediction = path or AffinePath(), source or Gaussian(), prediction
        self.margin, self.null = margin, null
        self.sampler, self.device, self.autocast = sampler or Sampler(), device or torch.device("cpu"), autocast

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int | None = None,
        solver: str | None = None,
        grid: str | None = None,
        diffusion: float | str | None = None,
        seed: int = 0,
        cond: Mapping[str, ConditionValue] | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        trajectory: bool = False,
        batch_size: int = 256,
        progress: bool = False,
    ) -> Tensor:
        """Draw n samples (n, *S) in data units, float32, on the CPU.

        ``steps``, ``solver`` and ``grid`` are by default those of the run's own sample grids; "dopri5" chooses its
        own steps. ``diffusion``, a number or a name, samples by the stochastic equation with that g(t), by
        "euler-maruyama" or "heun". Sample i depends on the seed and i alone, not on n or ``batch_size``. ``cond``
        gives a value for each condition it names; the others are drawn as often as they occur in the training data.
        ``guidance`` other than 1, within ``guidance_interval`` of t if given, needs a flow with conditions
        (classifier-free guidance). With ``trajectory`` the states at all grid times come back, (steps + 1, n, *S).
        Raises UserError for a bad argument.
        """
        if n < 1:
            raise UserError(f"the number of samples must be at least 1, got {n}")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}; 256 is usual")
        if guidance != 1 and not self.spec.conditions:
            raise UserError(f"guidance is {guidance}, but this flow has no conditions to guide by; leave it at 1")
        if guidance != 1 and not self.null:
            raise UserError(f"guidance is {guidance}, but the flow was trained with --label-dropout 0; leave it at 1")
        if guidance == 1 and guidance_interval is not None:
            raise UserError("guidance_interval is given, but guidance is 1, which is none; give a guidance such as 2")
        walk = self._walk(steps, solver, grid, diffusion, trajectory)
        conditions = self.conditions(n, cond, seed)
        parts = []
        with tqdm(total=n, unit="sample", desc="sample", disable=not progress) as bar:
            for first in range(0, n, batch_size):
                last = min(first + batch_size, n)
                rows = CounterRng(mix(seed, 1), 0, last - first, start=first, total=n)
                part = self._on_device({name: value[first:last] for name, value in conditions.items()})
                x0 = self._start(last - first, rows, part)
                x = walk(self.velocity(part, guidance=guidance, interval=guidance_interval), x0, rows)
                parts.append(x.float().cpu())
                bar.update(last - first)
        x = torch.cat(parts, dim=1 if trajectory else 0)
        inverse = lambda state: _without_padding(self.transform.inverse(state), conditions)
        return torch.stack([inverse(state) for state in x]) if trajectory else inverse(x)

    def _walk(
        self, steps: int | None, solver: str | None, grid: str | None, diffusion: float | str | None, trajectory: bool
    ) -> Callable[[Velocity, Tensor, CounterRng], Tensor]:
        """How a batch goes from noise to data."""
        t0, t1 = self._span
        if diffusion is not None:
            schedule = self._schedule("--diffusion", score=True)
            return lambda u, x0, rng: integrate_sde(
                u,
                None,
                x0,
                diffusion=diffusion,
                steps=steps,
                solver=solver or "euler-maruyama",
                grid=grid or self.sampler.grid,
                t0=t0,
                t1=t1,
                schedule=schedule,
                generator=rng,
                trajectory=trajectory,
            )
        method = get_solver(solver or self.sampler.solver)
        if method.name == "dpmpp2m":
            method = get_solver(method, schedule=self._schedule("dpmpp2m", score=False))
        if not (method.adaptive and not trajectory):
            steps, grid = self.sampler.steps if steps is None else steps, grid or self.sampler.grid
        return lambda u, x0, _: integrate(
            u, x0, solver=method, steps=steps, grid=grid, t0=t0, t1=t1, trajectory=trajectory
        )

    @cached_property
    def _span(self) -> tuple[float, float]:
        """0 and 1, but a little inside where the path is infinitely fast, which training leaves out as well."""
        if isinstance(self.path, Bridge):
            return self.margin, 1 - self.margin
        if not isinstance(self.path, AffinePath):
            return 0.0, 1.0
        start, end = self.path.schedule.finite_ends()
        return 0.0 if start else self.margin, 1.0 if end else 1 - self.margin

    def _schedule(self, what: str, *, score: bool) -> Schedule:
        """The schedule of an affine path; with ``score``, of one whose velocity gives the score."""
        if not isinstance(self.path, AffinePath):
            raise UserError(
                f"{what} needs an affine path, and this flow has {self.path}; take a solver such as midpoint"
            )
        if score and not (self.path.gaussian_source and isinstance(self.source, Gaussian)):
            raise UserError(
                f"{what} needs the score, which follows from the velocity only where noise is Gaussian and drawn apart"
                " from the data; this flow was trained with another source or coupling: take a solver such as midpoint"
            )
        return self.path.effective_schedule

    def _start(self, n: int, rows: CounterRng, cond: Conditions) -> Tensor:
        """Draw from p_0 (n, *S): the source and, on a path with jitter, the jitter; zero in padding."""
        x0 = self.source.sample((n, *self.spec.shape), rows, device=self.device)
        if isinstance(self.path, AffinePath) and self.path.sigma_min > 0:
            x0 = x0 + self.path.sigma_min * random.normal(x0.shape, rows, device=x0.device, dtype=x0.dtype)
        return _without_padding(x0, cond)

    def velocity(
        self,
        cond: Conditions | None = None,
        *,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> Velocity:
        """The velocity ``u(x (B, *S), t (B,)) -> (B, *S)`` in model units, under conditions (B,), guided if asked."""
        self.net.eval()
        return guided_velocity(self._velocity, cond, guidance, interval=interval)

    def _velocity(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        inside = t if self.prediction == "velocity" else t.clamp(self.margin, 1 - self.margin)
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            output = self.net(x_t, inside, cond)
        if self.prediction == "velocity":
            return output
        assert isinstance(self.path, AffinePath)
        return self.path.convert(output.to(x_t.dtype), x_t, inside, self.prediction, "velocity")

    def conditions(self, n: int, cond: Mapping[str, ConditionValue] | None = None, seed: int = 0) -> Conditions:
        """The conditions that :meth:`sample` uses: for each whole numbers (n,) or, standardised, (n, d)."""
        values = resolve_conditions(self.spec, n, cond, seed)
        if not self.null and any(is_null(value).any() for value in values.values()):
            raise UserError("the flow was trained with --label-dropout 0, so it knows no missing condition; give all")
        return values

    @torch.no_grad()
    def encode(
        self, x: Tensor, *, cond: Mapping[str, ConditionValue] | None = None, steps: int = 50, solver: str = "rk4"
    ) -> Tensor:
        """Carry data x (n, *S) back to the noise z (n, *S) that it comes from, at t = 0; :meth:`decode` undoes it."""
        given = self._given(len(x), cond)
        z = self.transform.forward(self._checked(x))
        return self._along(z, given, solver=solver, steps=steps, t0=self._span[1], t1=self._span[0])

    @torch.no_grad()
    def decode(
        self, z: Tensor, *, cond: Mapping[str, ConditionValue] | None = None, steps: int = 50, solver: str = "rk4"
    ) -> Tensor:
        """Carry noise z (n, *S) to data in data units (n, *S)."""
        given = self._given(len(z), cond)
        x = self._along(self._checked(z), given, solver=solver, steps=steps, t0=self._span[0], t1=self._span[1])
        return _without_padding(self.transform.inverse(x), given)

    def log_prob(
        self,
        x: Tensor,
        *,
        cond: Mapping[str, ConditionValue] | None = None,
        steps: int = 50,
        solver: str = "rk4",
        trace: Literal["exact", "hutchinson"] = "exact",
        seed: int = 0,
    ) -> Tensor:
        """The log-density (n,) of data x (n, *S) per data unit, in nats: change of variables along the flow.

        ``trace`` "exact" takes as many derivatives as a sample has elements, "hutchinson" one, with an unbiased error.
        Conditions that ``cond`` does not name are not given (the null). Raises UserError for a flow whose source is
        not the standard Gaussian, or whose sequences differ in length.
        """
        if not isinstance(self.source, Gaussian):
            raise UserError(
                f"log_prob needs a source with a density, and this flow starts from {type(self.source).__name__}"
            )
        if LENGTH in self.spec.conditions:
            raise UserError("log_prob needs samples of one size, and this flow makes sequences of several lengths")
        model = self.transform.forward(self._checked(x)).to(self.device)
        u = self.velocity(self._on_device(self._given(len(x), cond)))
        rng = CounterRng(mix(seed, 6), 0, len(x))
        value = log_prob(
            u,
            model,
            source=self._log_start,
            solver=solver,
            steps=steps,
            trace=trace,
            generator=None if trace == "exact" else rng,
            log_det=self.transform.log_det(x[0].numel()),
        )
        return value.float().cpu()

    def _log_start(self, z: Tensor) -> Tensor:
        """log p_0 (n,) at z (n, *S)."""
        scale = math.hypot(1.0, self.path.sigma_min) if isinstance(self.path, AffinePath) else 1.0
        return standard_normal_log_prob(z / scale) - z[0].numel() * math.log(scale)

    def bits_per_dim(self, x: Tensor, **options) -> Tensor:
        """``-log2 p(x) / D`` (n,), with the options of :meth:`log_prob`."""
        return bits_per_dim(self.log_prob(x, **options), x[0].numel())

    def _along(self, x: Tensor, cond: Conditions, **way) -> Tensor:
        u = self.velocity(self._on_device(cond))
        end = integrate(u, _without_padding(x, cond).to(self.device), **way)
        return _without_padding(end.float().cpu(), cond)

    def _given(self, n: int, cond: Mapping[str, ConditionValue] | None) -> Conditions:
        named = {**dict.fromkeys(self.spec.conditions), **(cond or {})}
        return self.conditions(n, named)

    def _on_device(self, cond: Conditions) -> Conditions:
        return {name: value.to(self.device) for name, value in cond.items()}

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.spec.shape or len(x) == 0:
            raise UserError(f"x must have shape (n, {', '.join(map(str, self.spec.shape))}), got {tuple(x.shape)}")
        return x


def _without_padding(x: Tensor, cond: Conditions) -> Tensor:
    """x with zeros after the last real step of each sample, where it is a sequence (n, L, C) with lengths."""
    real = real_steps(cond, x)
    return x if real is None else x * real[:, :, None]
