"""Ways from noise to data: coordinates that suit a path, with a solver of its ODE or SDE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import StepKind
from advect.losses.interpolant import split_heads
from advect.model.coordinates import Angle, Coordinates, Plain, Rectified
from advect.model.sampler_config import DEFAULT, SamplerConfig
from advect.paths import AffinePath, BrownianBridge, CondOT, LipmanOT, MixturePath, Path, Schedule
from advect.solvers import FlowMap, SDESolver, Solver, TauLeaping, Velocity, integrate_sde
from advect.solvers.diffusion_coefficients import Diffusion, bounded_diffusion
from advect.solvers.integrate import solver_times
from advect.solvers.interpolant_sde import integrate_interpolant
from advect.solvers.sde import STEPS as SDE_STEPS
from advect.solvers.time_grids import resolve_grid
from advect.sources import Gaussian, SourceDistribution


def coordinates_of(path: Path, source: SourceDistribution, prediction: str, t_eps: float) -> Coordinates:
    """Coordinates for the ODE of a network trained on this path; ``t_eps`` > 0 keeps it from t = 0 and 1."""
    if isinstance(path, BrownianBridge):
        return Angle(t_eps, 1 - t_eps, path=path, density=source.has_density)
    if not isinstance(path, AffinePath):
        return Plain()
    if prediction == "velocity" and isinstance(path.schedule, CondOT | LipmanOT):
        return Plain(straight=True)
    return _rectified(path, prediction, t_eps)


def default_sampler(path: Path) -> SamplerConfig:
    """How a flow on this path is sampled where no run says."""
    return SamplerConfig("tau-leaping", 64, "uniform") if isinstance(path, MixturePath) else DEFAULT


def _rectified(path: AffinePath, prediction: str, t_eps: float) -> Rectified:
    """Coordinates in which an affine path is straight, over the times at which the network was trained."""
    gaussian, low, high = path.gaussian_source, t_eps, 1 - t_eps
    way = Rectified(
        schedule=path.effective_schedule if gaussian else path.schedule,
        noise=math.hypot(1.0, path.sigma_min) if gaussian else 1.0,
        open=prediction == "data",
    )
    if prediction == "velocity" and all(path.schedule.finite_ends()):
        low, high = 0.0, 1.0
    if prediction == "data":
        low = 0.0
    return replace(way, low=low if way.defined(prediction, low) else t_eps, high=high, reach=high)


@dataclass(frozen=True)
class Integrator(ABC):
    """Way of a batch from noise to data.

    Attributes:
        coordinates: where it is solved, which tell the field that it follows.
        trajectory: whether all states are returned.
    """

    coordinates: Coordinates
    trajectory: bool

    @property
    @abstractmethod
    def times(self) -> tuple[float, ...]:
        """The times t of a trajectory's states."""

    def holding(self, given: Tensor | None) -> Integrator:
        """With the known tokens ``given`` (B, *S) of a batch, NaN where asked for; numbers are held by their field."""
        return self

    @abstractmethod
    def __call__(self, field: Velocity, x0: Tensor, rng: Generator) -> Tensor:
        """x1 (B, *S) of x0 (B, *S) along ``field``, or the trajectory (len(times), B, *S)."""


@dataclass(frozen=True)
class ODEIntegrator(Integrator):
    """Solution of the ODE by ``solver``, over the ``grid`` of times t."""

    solver: Solver
    grid: tuple[float, ...]

    @property
    def times(self) -> tuple[float, ...]:
        return self.coordinates.all_times(self.grid)

    def holding(self, given: Tensor | None) -> Integrator:
        if given is None or not isinstance(self.solver, TauLeaping):
            return self
        return replace(self, solver=replace(self.solver, given=given))

    def __call__(self, field: Velocity, x0: Tensor, rng: Generator) -> Tensor:
        way, solver = self.coordinates, self.solver
        if isinstance(solver, FlowMap | TauLeaping):
            solver = replace(solver, generator=rng)
        y = way.enter(field, x0, rng)
        states = way.solve(field, y, solver, self.grid, trajectory=self.trajectory)
        return way.trajectory(field, x0, states, self.grid) if self.trajectory else way.finish(field, states[-1])


@dataclass(frozen=True)
class SDEIntegrator(Integrator):
    """Solution of the SDE over times t in ``grid``; its last step is exact for the data that the velocity predicts.

    ``taus``, ``schedule`` and ``diffusion`` are those of the coordinates.
    """

    solver: SDESolver
    grid: tuple[float, ...]
    taus: tuple[float, ...]
    schedule: Schedule
    diffusion: Diffusion

    @property
    def times(self) -> tuple[float, ...]:
        return (*[0.0] * (self.coordinates.low > 0), *self.grid)

    def __call__(self, field: Velocity, x0: Tensor, rng: Generator) -> Tensor:
        way = self.coordinates
        y = way.enter(field, x0, rng)
        with way.user_times():
            found = integrate_sde(
                way.velocity(field),
                None,
                y,
                solver=self.solver,
                diffusion=self.diffusion,
                schedule=self.schedule,
                grid=torch.tensor(self.taus, dtype=torch.float64),
                t0=self.taus[0],
                t1=self.taus[-1],
                generator=rng,
                last_step="noisy",
                trajectory=self.trajectory,
            )
        if not self.trajectory:
            return found * way.scale(1.0)
        states = [y * way.scale(t) for y, t in zip(found, self.grid, strict=True)]
        return torch.stack([x0] * (way.low > 0) + states)


@dataclass(frozen=True)
class InterpolantIntegrator(Integrator):
    """Solution of the SDE with a learned score over the times ``grid``; its field is velocity and predicted noise.

    ``fresh``: the source is points, which get the width of the path in the first step.
    """

    solver: SDESolver
    grid: tuple[float, ...]
    path: Path
    diffusion: Diffusion
    fresh: bool

    @property
    def times(self) -> tuple[float, ...]:
        return self.grid

    def __call__(self, field: Velocity, x0: Tensor, rng: Generator) -> Tensor:
        return integrate_interpolant(
            lambda x, t: split_heads(field(x, t), x),
            self.path,
            x0,
            times=self.grid,
            diffusion=self.diffusion,
            solver=self.solver,
            inside=(self.coordinates.low, self.coordinates.high),
            fresh=self.fresh,
            generator=rng,
            trajectory=self.trajectory,
        )


def make_integrator(
    config: SamplerConfig,
    coordinates: Coordinates,
    path: Path,
    source: SourceDistribution,
    *,
    trajectory: bool,
    steps: StepKind | None = None,
) -> Integrator:
    """Integrator by a resolved configuration: of the SDE if it has a diffusion, else of the ODE.

    ``steps`` are those that the network has learned. Raises UserError for a path or source that the solver cannot
    take, steps that the network does not know, and bad steps and grids.
    """
    if config.diffusion is not None:
        return _make_sde(config, coordinates, path, source, trajectory)
    solver = config.ode_solver
    if solver.jumps != isinstance(path, MixturePath):
        of = "numbers flows along an ODE" if solver.jumps else "tokens jumps"
        usual = "midpoint" if solver.jumps else "tau-leaping"
        raise UserError(f"a flow of {of}, and solver {solver.name!r} does not; take {usual!r}")
    if isinstance(solver, TauLeaping):
        solver = replace(solver, path=path)
    elif isinstance(solver, FlowMap):
        coordinates = Plain()  # the learned map is of x itself
        if solver.noise:
            solver = replace(solver, schedule=with_score("noise of flow-map", path, source).effective_schedule)
    elif "schedule" in {f.name for f in fields(solver)}:
        schedule = _affine(solver.name, path).effective_schedule
        solver = replace(solver, schedule=CondOT() if isinstance(coordinates, Rectified) else schedule)
    grid = solver_times(solver, config.steps, config.grid, t0=0.0, t1=1.0, trajectory=trajectory)
    if isinstance(solver, FlowMap):
        solver.check(grid, steps)
    way = coordinates if solver.adaptive and not trajectory else coordinates.until_last(grid)
    return ODEIntegrator(way, trajectory, solver, tuple(grid))


def make_interpolant_integrator(
    config: SamplerConfig, t_eps: float, path: Path, source: SourceDistribution, *, trajectory: bool
) -> InterpolantIntegrator:
    """Integrator of the SDE with a learned score, on any path with noise."""
    assert config.diffusion is not None
    diffusion, low, high = config.diffusion, t_eps, 1 - t_eps
    if isinstance(path, AffinePath) and path.gaussian_source:
        diffusion = bounded_diffusion(diffusion, path.effective_schedule)
    grid = resolve_grid(config.grid or "uniform", config.steps, SDE_STEPS, t0=0.0, t1=1.0)
    way = Plain(low, high)
    times = (0.0, *way.grid(grid), 1.0)
    return InterpolantIntegrator(way, trajectory, config.sde_solver, times, path, diffusion, not source.has_density)


def with_score(what: str, path: Path, source: SourceDistribution) -> AffinePath:
    """The path, if the velocity tells the score on it."""
    if isinstance(path, AffinePath) and path.gaussian_source and isinstance(source, Gaussian):
        return path
    raise UserError(
        f"{what} needs the score, which follows from the velocity only on an affine path from Gaussian noise drawn "
        "apart from the data; this flow has another path, source or coupling: leave it out, or train with --objective "
        "stochastic-interpolant --score-network head"
    )


def _make_sde(
    config: SamplerConfig, way: Coordinates, path: Path, source: SourceDistribution, trajectory: bool
) -> SDEIntegrator:
    schedule = with_score("--diffusion", path, source).effective_schedule
    assert config.diffusion is not None
    diffusion = bounded_diffusion(config.diffusion, schedule)
    grid = taus = resolve_grid(config.grid or "uniform", config.steps, SDE_STEPS, t0=0.0, t1=1.0)
    if isinstance(way, Rectified):
        grid = [*way.grid(grid)[:-1], 1.0]
        taus, diffusion, schedule = way.times(grid), way.diffusion(diffusion), CondOT()
    return SDEIntegrator(way, trajectory, config.sde_solver, tuple(grid), tuple(taus), schedule, diffusion)


def _affine(what: str, path: Path) -> AffinePath:
    """The path, if affine."""
    if not isinstance(path, AffinePath):
        raise UserError(f"{what} needs an affine path, and this flow has {path}; take a solver such as midpoint")
    return path
