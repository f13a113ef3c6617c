"""Sampler settings, and sweeps over them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from advect.core import registry
from advect.core.bounds import DiffusionScale, Evaluations, GuidanceScale, Pixels, Steps, Time, bounded
from advect.core.errors import UserError
from advect.solvers import DiffusionCoefficient, SDESolver, Solver, TimeGrid, get_sde_solver, get_solver
from advect.solvers.sde import STEPS as SDE_STEPS


@bounded
@dataclass(frozen=True)
class SamplerConfig:
    """Arguments of :meth:`Flow.sample`: solver, steps, grid, g(t) of the SDE, guidance, image size.

    Parts are names or objects; None is the flow's default. Adaptive solvers have no steps and grid.
    """

    solver: str | Solver | SDESolver | None = None
    steps: Steps | None = None
    grid: str | TimeGrid | None = None
    diffusion: DiffusionScale | str | DiffusionCoefficient | None = None
    guidance: GuidanceScale = 1.0
    guidance_interval: tuple[Time, Time] | None = None
    image_size: tuple[Pixels, Pixels] | None = None

    @property
    def adaptive(self) -> bool:
        """Whether the solver is adaptive. Raises UserError for an unknown solver."""
        return self.diffusion is None and self.solver is not None and self.ode_solver.adaptive

    @property
    def few(self) -> bool:
        """Whether the solver takes the steps of a flow map."""
        return self.diffusion is None and self.solver is not None and self.ode_solver.two_times

    @property
    def ode_solver(self) -> Solver:
        """The solver of the ODE. Raises UserError for one of the SDE, and an unknown name."""
        solver = self.solver
        assert solver is not None
        stochastic = set(registry.choices("sde-solver")) - set(registry.choices("solver"))
        if isinstance(solver, SDESolver) or solver in stochastic:
            raise UserError(f"solver {_words(solver)!r} is for the stochastic equation; give --diffusion, such as 0.5")
        return get_solver(solver)

    @property
    def sde_solver(self) -> SDESolver:
        """The solver of the SDE. Raises UserError for one of the ODE, and an unknown name."""
        assert self.solver is not None
        return get_sde_solver(self.solver)

    def resolve(self, own: SamplerConfig, *, trajectory: bool = False) -> SamplerConfig:
        """Fill None from the flow's ``own`` sampler, or the SDE's defaults.

        With ``trajectory`` adaptive solvers also get steps and grid, as output times.
        """
        usual = own if self.diffusion is None else replace(own, solver="ab2", steps=SDE_STEPS)
        if self.solver is not None and self.diffusion is None and own.few and not self.few:
            usual = DEFAULT  # a flow map's steps are too few for another solver
        config = replace(self, solver=self.solver or usual.solver)
        if config.adaptive and not trajectory:
            return config
        return replace(config, steps=usual.steps if self.steps is None else self.steps, grid=self.grid or usual.grid)

    def arguments(self) -> dict[str, Any]:
        """The arguments of :meth:`Flow.sample`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def facts(self) -> dict[str, Any]:
        """All values as JSON, parts as names with arguments."""
        return {name: _words(value) for name, value in self.arguments().items()}

    def to_dict(self) -> dict[str, Any]:
        """Solver, grid, steps and diffusion as JSON."""
        facts = self.facts()
        return {name: facts[name] for name in ("solver", "grid", "steps", "diffusion")}

    def __str__(self) -> str:
        words = [str(_words(self.solver))]
        if self.steps is not None:
            words.append(f"{self.steps} {_words(self.grid)} step{'s' * (self.steps != 1)}")
        return " ".join(words) + ("" if self.diffusion is None else f", diffusion {_words(self.diffusion)}")


def _words(value: Any) -> Any:
    """A part as its name with the arguments that differ from the defaults, such as ``edm(rho=5.0)``; others as is."""
    if not isinstance(value, Solver | SDESolver | TimeGrid | DiffusionCoefficient):
        return value
    given = [f"{a.name}={v}" for a in registry.arguments(type(value)) if (v := getattr(value, a.name)) != a.default]
    name = getattr(value, "part_name", type(value).__name__)
    return name + (f"({', '.join(given)})" if given else "")


DEFAULT = SamplerConfig("midpoint", 50, "uniform")


Cost = Callable[[SamplerConfig], int | None]
"""Evaluations a sample; None if known only afterwards. See :meth:`advect.model.flow.Flow.nfe`."""


@bounded
def plan_sweep(
    own: SamplerConfig,
    cost: Cost,
    *,
    solvers: Sequence[str | Solver | SDESolver] = (),
    grids: Sequence[str | TimeGrid] = (),
    nfes: Sequence[Evaluations] = (),
    steps: Sequence[Steps] = (),
    diffusion: float | str | DiffusionCoefficient | None = None,
) -> list[SamplerConfig]:
    """All combinations of solvers, grids, and numbers of steps or of at most so many evaluations.

    Defaults are the flow's ``own`` sampler, or the SDE's. Adaptive solvers occur once. Raises UserError for unknown
    names, numbers below 1, contradictory or unused flags, and a solver that takes more than all ``nfes``.
    """
    if nfes and steps:
        raise UserError("--nfe and --num-steps contradict each other; give one of them")
    for grid in grids:
        if isinstance(grid, str):
            registry.get("grid", grid)
    sweep: dict[SamplerConfig, None] = {}
    for solver in solvers or (None,):
        usual = SamplerConfig(solver, diffusion=diffusion).resolve(own)
        if diffusion is not None:
            _ = usual.sde_solver  # raises for one of the ODE
        if usual.adaptive:
            sweep[usual] = None
            continue
        for grid in grids or (usual.grid,):
            config = replace(usual, grid=grid)
            counts = _steps_for(config, cost, nfes) if nfes else steps or (usual.steps,)
            sweep |= dict.fromkeys(replace(config, steps=n) for n in counts)
    if all(config.adaptive for config in sweep):
        for flag, value in (("--grid", grids), ("--nfe", nfes), ("--num-steps", steps)):
            if value:
                raise UserError(f"{flag} is given, but {' and '.join(map(str, sweep))} chooses its own steps")
    return list(sweep)


def _steps_for(config: SamplerConfig, cost: Cost, nfes: Sequence[int]) -> list[int]:
    """Numbers of steps with these numbers of evaluations, or if it meets none, the next below."""

    def calls(steps: int) -> int:
        return cost(replace(config, steps=steps)) or 0

    exact, below = [], []
    for nfe in nfes:
        near = 1 + bisect_left(range(1, 4 * nfe + 1), nfe, key=calls)
        # A grid may lose a step as it gets finer, where times at the ends are left to the exact steps.
        some = [n for n in (near, near - 1, near + 1) if n > 0 and calls(n) <= nfe]
        exact += [n for n in some if calls(n) == nfe][:1]
        below += sorted(some, key=calls)[-1:]
    steps = exact or below
    if not steps:
        solver = config.ode_solver if config.diffusion is None else config.sde_solver
        raise UserError(
            f"--nfe {' '.join(map(str, nfes))} holds none that {_words(config.solver)} can meet, at"
            f" {solver.evaluations} a step and at least {calls(1)} in all; add another, or leave it out"
        )
    return steps
