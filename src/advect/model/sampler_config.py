"""Sampler settings, and sweeps over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from advect.core import registry
from advect.core.errors import UserError, did_you_mean
from advect.core.registry import choices
from advect.solvers import SDE_SOLVERS, get_solver
from advect.solvers.sde import STEPS as SDE_STEPS


@dataclass(frozen=True)
class SamplerConfig:
    """Arguments of :meth:`Flow.sample`: solver, steps, grid, g(t) of the SDE, guidance.

    None is the flow's default. Adaptive solvers have no steps and grid.
    """

    solver: str | None = None
    steps: int | None = None
    grid: str | None = None
    diffusion: float | str | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None

    @property
    def adaptive(self) -> bool:
        """Whether the solver is adaptive. Raises UserError for an unknown solver."""
        return self.diffusion is None and self.solver is not None and get_solver(self.solver).adaptive

    def resolve(self, own: SamplerConfig, *, trajectory: bool = False) -> SamplerConfig:
        """Fill None from the flow's ``own`` sampler, or the SDE's defaults.

        With ``trajectory`` adaptive solvers also get steps and grid, as output times.
        """
        usual = own if self.diffusion is None else replace(own, solver=SDE_SOLVERS[0], steps=SDE_STEPS)
        config = replace(self, solver=self.solver or usual.solver)
        if config.adaptive and not trajectory:
            return config
        return replace(config, steps=usual.steps if self.steps is None else self.steps, grid=self.grid or usual.grid)

    @property
    def nfe(self) -> int | None:
        """Evaluations a sample of the resolved ODE; None for adaptive solvers and SDEs."""
        if self.diffusion is not None or self.adaptive or self.solver is None or self.steps is None:
            return None
        return get_solver(self.solver).nfe(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Solver, grid, steps and diffusion as JSON."""
        return {"solver": self.solver, "grid": self.grid, "steps": self.steps, "diffusion": self.diffusion}

    def __str__(self) -> str:
        words = [str(self.solver)]
        if self.steps is not None:
            words.append(f"{self.steps} {self.grid} step{'s' * (self.steps != 1)}")
        return " ".join(words) + ("" if self.diffusion is None else f", diffusion {self.diffusion}")


DEFAULT = SamplerConfig("midpoint", 50, "uniform")


def plan_sweep(
    own: SamplerConfig,
    *,
    solvers: Sequence[str] = (),
    grids: Sequence[str] = (),
    nfes: Sequence[int] = (),
    steps: Sequence[int] = (),
    diffusion: float | str | None = None,
) -> list[SamplerConfig]:
    """All combinations of solvers, grids, and numbers of steps or of evaluations that the solver can meet.

    Defaults are the flow's ``own`` sampler, or the SDE's. Adaptive solvers occur once. Raises UserError for unknown
    names, numbers below 1, contradictory or unused flags, and a solver that meets none of ``nfes``.
    """
    if nfes and steps:
        raise UserError("--nfe and --num-steps contradict each other; give one of them")
    for flag, numbers in (("--nfe", nfes), ("--num-steps", steps)):
        if any(n < 1 for n in numbers):
            raise UserError(f"{flag} must be at least 1, got {min(numbers)}")
    for grid in grids:
        registry.get("grid", grid)
    sweep: dict[SamplerConfig, None] = {}
    for solver in solvers or (None,):
        if solver is not None:
            _check_equation(solver, diffusion)
        usual = SamplerConfig(solver, diffusion=diffusion).resolve(own)
        if usual.adaptive:
            sweep[usual] = None
            continue
        counts = _steps_for(str(usual.solver), nfes, diffusion) if nfes else steps or (usual.steps,)
        sweep |= dict.fromkeys(replace(usual, grid=g, steps=n) for g in grids or (usual.grid,) for n in counts)
    if all(config.adaptive for config in sweep):
        for flag, value in (("--grid", grids), ("--nfe", nfes), ("--num-steps", steps)):
            if value:
                raise UserError(f"{flag} is given, but {' and '.join(map(str, sweep))} chooses its own steps")
    return list(sweep)


def _check_equation(solver: str, diffusion: float | str | None) -> None:
    """Raise UserError for a solver of the other equation (ODE or SDE)."""
    if diffusion is None:
        if solver in SDE_SOLVERS and solver not in choices("solver"):
            raise UserError(f"solver {solver!r} is for the stochastic equation; give --diffusion, such as 0.5")
        get_solver(solver)
    elif solver not in SDE_SOLVERS:
        raise UserError(f"solver {solver!r} does not take --diffusion{did_you_mean(solver, SDE_SOLVERS)}")


def _steps_for(solver: str, nfes: Sequence[int], diffusion: float | str | None) -> list[int]:
    """Numbers of steps with these numbers of evaluations."""
    if diffusion is None:
        cost = get_solver(solver).evaluations
        steps = [nfe // cost for nfe in nfes if nfe % cost == 0]
    else:  # the trapezoid needs one evaluation less, as its last step goes to the mean
        cost = 1 + (solver == "heun")
        steps = [(nfe + cost - 1) // cost for nfe in nfes if (nfe + cost - 1) % cost == 0]
    if not steps:
        raise UserError(
            f"--nfe {' '.join(map(str, nfes))} holds none that {solver} can meet, at {cost} a step; add another, or"
            " leave it out"
        )
    return steps
