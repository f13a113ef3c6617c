"""Trained flow: sampling, encoding, densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import LENGTH, Conditions, DataSpec, is_null, without_padding
from advect.data import Transform
from advect.data.modality import Modality, labels_of, modality_of
from advect.losses.flow_matching import Kind
from advect.model.conditions import ConditionValue, resolve_conditions
from advect.model.sampler_config import DEFAULT, SamplerConfig
from advect.paths import AffinePath, BrownianBridge, Path, Schedule
from advect.solvers import (
    Straightness,
    Velocity,
    bits_per_dim,
    deviations,
    get_solver,
    guided_velocity,
    integrate,
    integrate_sde,
    log_prob,
    standard_normal_log_prob,
)
from advect.sources import Gaussian, InitialNoise, SourceDistribution, noise_of


@dataclass(frozen=True)
class Samples:
    """Samples x (n, *S), or trajectories (steps + 1, n, *S), with their conditions (n, ...).

    ``encoded`` are the conditions as network inputs, ``cond`` the same by the data's labels and units. ``nfe`` is the
    number of velocity evaluations a sample; guided ones count once.
    """

    x: Tensor
    encoded: Conditions
    nfe: float
    spec: DataSpec

    @property
    def cond(self) -> dict[str, np.ndarray]:
        """The conditions (n, ...) as labels and numbers of the data, which flows take; see ``labels_of``."""
        return labels_of(self.encoded, self.spec)

    def __len__(self) -> int:
        return len(self.x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.x, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return tuple(self.x.shape)

    @overload
    def __getitem__(self, rows: slice) -> Samples: ...
    @overload
    def __getitem__(self, rows: Any) -> Tensor: ...

    def __getitem__(self, rows: Any) -> Samples | Tensor:
        """Some of the samples, which are no trajectories, by a slice; what else x is indexed by gives a tensor."""
        if not isinstance(rows, slice):
            return self.x[rows]
        cond = {name: value[rows] for name, value in self.encoded.items()}
        return Samples(self.x[rows], cond, self.nfe, self.spec)

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """Samples, no trajectories, one after the other."""
        cond = {name: torch.cat([part.encoded[name] for part in parts]) for name in parts[0].encoded}
        nfe = sum(part.nfe * len(part.x) for part in parts) / sum(len(part.x) for part in parts)
        return Samples(torch.cat([part.x for part in parts]), cond, nfe, parts[0].spec)


class Flow:
    """Network ``net(x_t (B, *S), t (B,), cond)`` with shape, conditions and transform of the data, path and source.

    The network gives the ``prediction`` in model units. ``t_eps`` keeps t from 0 and 1 as in the loss. ``null``:
    whether conditions were dropped in training, as guidance needs. ``facts``: ``Dataset.metadata``.
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
        t_eps: float = 1e-3,
        null: bool = True,
        sampler: SamplerConfig | None = None,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.net, self.spec, self.transform = net, spec, transform
        self.path, self.source, self.prediction = path or AffinePath(), source or Gaussian(), prediction
        self.t_eps, self.null, self.facts = t_eps, null, facts or {}
        self.sampler, self.device, self.autocast = sampler or DEFAULT, device or torch.device("cpu"), autocast

    @cached_property
    def modality(self) -> Modality:
        """Writing, plotting and comparison of samples."""
        return modality_of(self.spec, self.transform, self.facts)

    @cached_property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of a sample in data units."""
        return tuple(self.transform.inverse(torch.zeros(1, *self.spec.shape)).shape[1:])

    def velocity(
        self, cond: Conditions | None = None, *, guidance: float = 1.0, interval: tuple[float, float] | None = None
    ) -> Velocity:
        """Velocity ``u(x (B, *S), t (B,)) -> (B, *S)`` in model units, under conditions (B,), with guidance."""
        self.net.eval()
        return guided_velocity(self._velocity, cond, guidance, interval=interval)

    def output(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Network output (B, *S), in the training precision."""
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            return self.net(x_t, t, cond)

    def _velocity(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        inside = t if self.prediction == "velocity" else t.clamp(self.t_eps, 1 - self.t_eps)
        output = self.output(x_t, inside, cond)
        if self.prediction == "velocity":
            return output
        assert isinstance(self.path, AffinePath)
        return self.path.convert(output.to(x_t.dtype), x_t, inside, self.prediction, "velocity")

    def conditions(
        self,
        n: int,
        cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
        seed: int = 0,
        *,
        rows: range | None = None,
    ) -> Conditions:
        """Conditions of :meth:`sample`, integers (n,) or standardised (n, d), of ``rows`` if given."""
        values = resolve_conditions(self.spec, n, cond, seed, rows)
        if not self.null and any(is_null(value).any() for value in values.values()):
            raise UserError("the flow was trained with --label-dropout 0, so it knows no missing condition; give all")
        return values

    def _given(self, n: int, cond: Mapping[str, ConditionValue] | None) -> Conditions:
        named = {**dict.fromkeys(self.spec.conditions), **(cond or {})}
        return self.conditions(n, named)

    def _on_device(self, cond: Conditions) -> Conditions:
        return {name: value.to(self.device) for name, value in cond.items()}

    @cached_property
    def span(self) -> tuple[float, float]:
        """Integration limits: 0 and 1, or ``t_eps`` inside where the path is infinitely fast."""
        if isinstance(self.path, BrownianBridge):
            return self.t_eps, 1 - self.t_eps
        if not isinstance(self.path, AffinePath):
            return 0.0, 1.0
        start, end = self.path.schedule.finite_ends()
        return 0.0 if start else self.t_eps, 1.0 if end else 1 - self.t_eps

    def _schedule(self, what: str, *, score: bool) -> Schedule:
        """Schedule of an affine path; ``score`` requires that the velocity gives the score."""
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
        cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        trajectory: bool = False,
        batch_size: int = 256,
        rows: range | None = None,
        model_units: bool = False,
        progress: bool | tqdm = False,
    ) -> Samples:
        """Sample n samples (n, *S) in data units, on the CPU: float32, or float64 for tables.

        Sample i depends on the seed and i alone. An empirical source starts from rows with the same categories, if
        any. Padding of sequences is zero.

        Args:
            steps, solver, grid: default those of the run's sample grids; "dopri5" is adaptive.
            diffusion: g(t), a number or a name, of the SDE, by "euler-maruyama" or "heun".
            cond: for each condition it names, a value in the data such as a label, or n of them, see
                ``ConditionValue``; others follow the training frequencies.
            guidance: scale of classifier-free guidance, within ``guidance_interval`` of t if given.
            trajectory: return the states at all grid times, (steps + 1, n, *S).
            rows: a range within 0 .. n, to sample a share.
            model_units: skip the transform to data units.
            progress: show a bar, or update one.

        Raises UserError for a bad argument.
        """
        config = SamplerConfig(solver, steps, grid, diffusion, guidance, guidance_interval)
        config = config.resolve(self.sampler, trajectory=trajectory)
        follow, rows = self._integrator(config, trajectory), _rows(n, rows, batch_size)
        self._check_guidance(guidance, guidance_interval)
        conditions = self.conditions(n, cond, seed, rows=rows)
        parts, calls = [], 0
        for x0, part, rng in self._initial_states(n, rows, conditions, seed, batch_size, progress):
            u = _Counted(self.velocity(part, guidance=guidance, interval=guidance_interval))
            parts.append(follow(u, x0, rng).float().cpu())
            calls += u.calls
        x, nfe = torch.cat(parts, dim=1 if trajectory else 0), calls / len(rows)
        if not model_units:
            inverse = lambda state: without_padding(self.transform.inverse(state), conditions)
            x = torch.stack([inverse(state) for state in x]) if trajectory else inverse(x)
        return Samples(x, conditions, int(nfe) if nfe.is_integer() else nfe, self.spec)

    @torch.no_grad()
    def straightness(
        self,
        n: int = 1000,
        *,
        steps: int = 100,
        solver: str = "euler",
        seed: int = 0,
        cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        batch_size: int = 256,
        rows: range | None = None,
        progress: bool | tqdm = False,
    ) -> Straightness:
        """Straightness of the paths of n samples, in model units, see :func:`advect.solvers.straightness`.

        Zero padding counts as elements.
        """
        rows = _rows(n, rows, batch_size)
        self._check_guidance(guidance, guidance_interval)
        (t0, t1), conditions, parts = self.span, self.conditions(n, cond, seed, rows=rows), []
        for x0, part, _ in self._initial_states(n, rows, conditions, seed, batch_size, progress):
            u = self.velocity(part, guidance=guidance, interval=guidance_interval)
            inside: Velocity = lambda x, t, u=u, part=part: without_padding(u(x, t), part)
            parts.append(torch.stack(deviations(inside, x0, steps=steps, solver=solver, t0=t0, t1=t1)).cpu())
        return Straightness.of(*torch.cat(parts, 1))

    def _check_guidance(self, guidance: float, interval: tuple[float, float] | None) -> None:
        if guidance != 1 and not self.spec.conditions:
            raise UserError(f"guidance is {guidance}, but this flow has no conditions to guide by; leave it at 1")
        if guidance != 1 and not self.null:
            raise UserError(f"guidance is {guidance}, but the flow was trained with --label-dropout 0; leave it at 1")
        if guidance == 1 and interval is not None:
            raise UserError("guidance_interval is given, but guidance is 1, which is none; give a guidance such as 2")

    def _initial_states(
        self, n: int, rows: range, conditions: Conditions, seed: int, batch_size: int, progress: bool | tqdm
    ) -> Iterator[tuple[Tensor, Conditions, CounterRng]]:
        """Batches of initial states (B, *S), conditions (B,) and random numbers for ``rows`` of n samples."""
        with nullcontext(progress) if isinstance(progress, tqdm) else _sample_bar(len(rows), progress) as bar:
            for first in rows[::batch_size]:
                last = min(first + batch_size, rows.stop)
                rng = noise_of(seed, range(first, last), n)
                here = slice(first - rows.start, last - rows.start)
                part = self._on_device({name: value[here] for name, value in conditions.items()})
                yield self.initial_noise.sample(rng, self.spec.shape, part, device=self.device), part, rng
                bar.update(last - first)

    def _integrator(self, config: SamplerConfig, trajectory: bool) -> Callable[[Velocity, Tensor, CounterRng], Tensor]:
        """Function from noise to data for a batch."""
        (t0, t1), solver = self.span, config.solver or ""
        options: dict[str, Any] = {"steps": config.steps, "t0": t0, "t1": t1, "trajectory": trajectory}
        if config.diffusion is not None:
            options |= {"solver": solver, "grid": config.grid, "diffusion": config.diffusion}
            options["schedule"] = self._schedule("--diffusion", score=True)
            return lambda u, x0, rng: integrate_sde(u, None, x0, generator=rng, **options)
        schedule = self._schedule(solver, score=False) if solver == "dpmpp2m" else None
        method = get_solver(solver, schedule=schedule)
        return lambda u, x0, rng: integrate(u, x0, solver=method, grid=config.grid, **options)

    @property
    def initial_noise(self) -> InitialNoise:
        """Distribution at t = 0: source and jitter."""
        return InitialNoise(self.source, self.path.sigma_min if isinstance(self.path, AffinePath) else 0.0)

    @torch.no_grad()
    def encode(
        self, x: Tensor, *, cond: Mapping[str, ConditionValue] | None = None, steps: int = 50, solver: str = "rk4"
    ) -> Tensor:
        """Integrate data x (n, *S) to noise z (n, *S) at t = 0; inverse of :meth:`decode`."""
        given = self._given(len(x), cond)
        z = self.transform.forward(self._checked(x, self.data_shape))
        return self._along(z, given, solver=solver, steps=steps, t0=self.span[1], t1=self.span[0])

    @torch.no_grad()
    def decode(
        self, z: Tensor, *, cond: Mapping[str, ConditionValue] | None = None, steps: int = 50, solver: str = "rk4"
    ) -> Tensor:
        """Integrate noise z (n, *S) to data (n, *S) in data units."""
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
        """Log-density (n,) of data x (n, *S) per data unit, in nats, by change of variables.

        ``trace`` "exact" costs a derivative per element, "hutchinson" (unbiased) one. Conditions not in ``cond`` are
        null. Raises UserError unless the source is the standard Gaussian, sequences have one length and the data have
        a density.
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
        rng = CounterRng(stream_seed(seed, Stream.LOG_PROB), 0, len(x))
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


class _Counted:
    """Velocity that counts evaluated rows."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.calls = velocity, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += len(x)
        return self.velocity(x, t)


@contextmanager
def _row_by_row(net: nn.Module) -> Iterator[None]:
    """Context without channels-last weights, for which group normalisation has no forward derivative."""
    last = any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters())
    try:
        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] - not in the stub
        yield
    finally:
        if last:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _rows(n: int, rows: range | None, batch_size: int) -> range:
    """Requested rows of n samples, default all."""
    if n < 1:
        raise UserError(f"the number of samples must be at least 1, got {n}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}; 256 is usual")
    if rows is not None and not (0 <= rows.start < rows.stop <= n and rows.step == 1):
        raise UserError(f"rows must be a range within 0 .. {n}, not empty, of step 1, got {rows}")
    return range(n) if rows is None else rows


def _sample_bar(total: int, show: bool) -> tqdm:
    """Bar of samples, hidden unless ``show``."""
    return tqdm(total=total, unit="sample", desc="sample", disable=not show)
