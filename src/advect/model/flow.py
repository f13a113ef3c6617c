"""A trained flow: sample from it, encode data, and ask for densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advect.core.errors import UserError
from advect.core.random import CounterRng, mix
from advect.core.types import LENGTH, Conditions
from advect.model.conditions import ConditionValue
from advect.model.initial_noise import InitialNoise, noise_of
from advect.model.velocity_field import Sampler as Sampler
from advect.model.velocity_field import VelocityField, without_padding
from advect.paths import AffinePath
from advect.solvers import (
    Straightness,
    Velocity,
    bits_per_dim,
    deviations,
    get_solver,
    integrate,
    integrate_sde,
    log_prob,
    standard_normal_log_prob,
)
from advect.sources import Gaussian


class Flow(VelocityField):
    """A :class:`VelocityField` to sample from, to encode data with, and to ask for densities."""

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
        rows: range | None = None,
        model_units: bool = False,
        progress: bool | tqdm = False,
    ) -> Tensor:
        """Draw n samples (n, *S) in data units, on the CPU: float32, or float64 for tables.

        ``steps``, ``solver`` and ``grid`` are by default those of the run's own sample grids; "dopri5" chooses its
        own steps. ``diffusion``, a number or a name, samples by the stochastic equation with that g(t), by
        "euler-maruyama" or "heun". Sample i depends on the seed and i alone, not on n or ``batch_size``. ``cond``
        gives a value for each condition it names; the others are drawn as often as they occur in the training data,
        the lengths of sequences among them, which are zero after their last step. A flow that starts from data, such
        as control cells, starts each sample from a row that agrees with its categories, or from any if none does.
        ``guidance`` other than 1, within ``guidance_interval`` of t if given, needs a flow with conditions
        (classifier-free guidance). With ``trajectory`` the states at all grid times come back, (steps + 1, n, *S).
        ``rows``, a range within 0 .. n, draws these of the n samples alone, such as one process's share. With
        ``model_units`` the samples stay as the network has them. ``progress`` shows a bar, or moves one on that is
        there.
        Raises UserError for a bad argument.
        """
        walk, rows = self._walk(steps, solver, grid, diffusion, trajectory), _rows(n, rows, batch_size)
        self._check_guidance(guidance, guidance_interval)
        conditions = self.conditions(n, cond, seed, rows=rows)
        parts = []
        for x0, part, rng in self._starts(n, rows, conditions, seed, batch_size, progress):
            x = walk(self.velocity(part, guidance=guidance, interval=guidance_interval), x0, rng)
            parts.append(x.float().cpu())
        x = torch.cat(parts, dim=1 if trajectory else 0)
        if model_units:
            return x
        inverse = lambda state: without_padding(self.transform.inverse(state), conditions)
        return torch.stack([inverse(state) for state in x]) if trajectory else inverse(x)

    @torch.no_grad()
    def straightness(
        self,
        n: int = 1000,
        *,
        steps: int = 100,
        solver: str = "euler",
        seed: int = 0,
        cond: Mapping[str, ConditionValue] | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        batch_size: int = 256,
        rows: range | None = None,
        progress: bool | tqdm = False,
    ) -> Straightness:
        """How straight the paths of the n samples are that :meth:`sample` draws with these arguments, in model units.

        See :func:`advect.solvers.straightness`. The padding of sequences stays zero, and counts as elements do.
        """
        rows = _rows(n, rows, batch_size)
        self._check_guidance(guidance, guidance_interval)
        (t0, t1), conditions, found = self.span, self.conditions(n, cond, seed, rows=rows), []
        for x0, part, _ in self._starts(n, rows, conditions, seed, batch_size, progress):
            u = self.velocity(part, guidance=guidance, interval=guidance_interval)
            inside: Velocity = lambda x, t, u=u, part=part: without_padding(u(x, t), part)
            found.append(torch.stack(deviations(inside, x0, steps=steps, solver=solver, t0=t0, t1=t1)).cpu())
        return Straightness.of(*torch.cat(found, 1))

    def _check_guidance(self, guidance: float, interval: tuple[float, float] | None) -> None:
        if guidance != 1 and not self.spec.conditions:
            raise UserError(f"guidance is {guidance}, but this flow has no conditions to guide by; leave it at 1")
        if guidance != 1 and not self.null:
            raise UserError(f"guidance is {guidance}, but the flow was trained with --label-dropout 0; leave it at 1")
        if guidance == 1 and interval is not None:
            raise UserError("guidance_interval is given, but guidance is 1, which is none; give a guidance such as 2")

    def _starts(
        self, n: int, rows: range, conditions: Conditions, seed: int, batch_size: int, progress: bool | tqdm
    ) -> Iterator[tuple[Tensor, Conditions, CounterRng]]:
        """The starts (B, *S) of these rows of n samples, a batch at a time, with conditions (B,) and randomness."""
        with nullcontext(progress) if isinstance(progress, tqdm) else sample_bar(len(rows), progress) as bar:
            for first in rows[::batch_size]:
                last = min(first + batch_size, rows.stop)
                rng = noise_of(seed, range(first, last), n)
                here = slice(first - rows.start, last - rows.start)
                part = self._on_device({name: value[here] for name, value in conditions.items()})
                yield self.start.draw(rng, self.spec.shape, part, device=self.device), part, rng
                bar.update(last - first)

    def _walk(
        self, steps: int | None, solver: str | None, grid: str | None, diffusion: float | str | None, trajectory: bool
    ) -> Callable[[Velocity, Tensor, CounterRng], Tensor]:
        """How a batch goes from noise to data."""
        t0, t1 = self.span
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

    @property
    def start(self) -> InitialNoise:
        """Where it starts, at t = 0: the source and, on a path with jitter, that."""
        return InitialNoise(self.source, self.path.sigma_min if isinstance(self.path, AffinePath) else 0.0)

    @torch.no_grad()
    def encode(
        self, x: Tensor, *, cond: Mapping[str, ConditionValue] | None = None, steps: int = 50, solver: str = "rk4"
    ) -> Tensor:
        """Carry data x (n, *S) back to the noise z (n, *S) that it comes from, at t = 0; :meth:`decode` undoes it."""
        given = self._given(len(x), cond)
        z = self.transform.forward(self._checked(x, self.data_shape))
        return self._along(z, given, solver=solver, steps=steps, t0=self.span[1], t1=self.span[0])

    @torch.no_grad()
    def decode(
        self, z: Tensor, *, cond: Mapping[str, ConditionValue] | None = None, steps: int = 50, solver: str = "rk4"
    ) -> Tensor:
        """Carry noise z (n, *S) to data in data units (n, *S)."""
        given = self._given(len(z), cond)
        x = self._along(
            self._checked(z, self.spec.shape), given, solver=solver, steps=steps, t0=self.span[0], t1=self.span[1]
        )
        return without_padding(self.transform.inverse(x), given)

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
        not the standard Gaussian, whose sequences differ in length, or whose data have no density, and says why.
        """
        x = self._checked(x, self.data_shape)
        log_det = self.transform.log_det(x[0].numel())
        if not isinstance(self.source, Gaussian):
            raise UserError(
                f"log_prob needs a source with a density, and this flow starts from {type(self.source).__name__}"
            )
        if LENGTH in self.spec.conditions:
            raise UserError("log_prob needs samples of one size, and this flow makes sequences of several lengths")
        model = self.transform.forward(x).to(self.device)
        u = self.velocity(self._on_device(self._given(len(x), cond)))
        rng = CounterRng(mix(seed, 6), 0, len(x))
        with _row_by_row(self.net):
            value = log_prob(
                u,
                model,
                source=self._log_start,
                solver=solver,
                steps=steps,
                trace=trace,
                generator=None if trace == "exact" else rng,
                log_det=log_det,
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
        end = integrate(u, without_padding(x, cond).to(self.device), **way)
        return without_padding(end.float().cpu(), cond)

    @staticmethod
    def _checked(x: Tensor, shape: tuple[int, ...]) -> Tensor:
        if x.shape[1:] != shape or len(x) == 0:
            raise UserError(f"x must have shape (n, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        return x


@contextmanager
def _row_by_row(net: nn.Module) -> Iterator[None]:
    """Within the block no weight lies channels last, of which group normalisation has no forward derivative."""
    last = any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters())
    try:
        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] - not in the stub
        yield
    finally:
        if last:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _rows(n: int, rows: range | None, batch_size: int) -> range:
    """The rows of n samples that are asked for, all of them where ``rows`` is None."""
    if n < 1:
        raise UserError(f"the number of samples must be at least 1, got {n}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}; 256 is usual")
    if rows is not None and not (0 <= rows.start < rows.stop <= n and rows.step == 1):
        raise UserError(f"rows must be a range within 0 .. {n}, not empty, of step 1, got {rows}")
    return range(n) if rows is None else rows


def sample_bar(total: int, show: bool, title: str = "sample") -> tqdm:
    """A bar of samples; hidden unless ``show``."""
    return tqdm(total=total, unit="sample", desc=title, disable=not show)
