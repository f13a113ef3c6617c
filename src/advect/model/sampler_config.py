"""Ways to follow a flow, and the sweep over several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from advect.core.errors import UserError, did_you_mean
from advect.model.velocity_field import Sampler
from advect.solvers import SDE_SOLVERS, get_solver
from advect.solvers.sde import STEPS as SDE_STEPS
from advect.solvers.time_grids import GRIDS


@dataclass(frozen=True)
class Way:
    """Solver, grid, number of steps and diffusion; an adaptive solver has its own grid and steps, None here."""

    solver: str
    grid: str | None
    steps: int | None
    diffusion: float | str | None = None

    def told(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        words = [self.solver]
        if self.steps is not None:
            words.append(f"{self.steps} {self.grid} step{'s' * (self.steps != 1)}")
        return " ".join(words) + ("" if self.diffusion is None else f", diffusion {self.diffusion}")


def plan_ways(
    own: Sampler,
    *,
    solvers: Sequence[str] = (),
    grids: Sequence[str] = (),
    nfes: Sequence[int] = (),
    steps: Sequence[int] = (),
    diffusion: float | str | None = None,
) -> list[Way]:
    """Each solver on each grid with each number of steps, or of evaluations so far as it can meet them.

    What is not given is as in the run's ``own`` sampler, or usual for the stochastic equation. An adaptive solver is
    one way. Raises UserError for unknown names, numbers below 1, flags that contradict one another or that nothing
    uses, and a solver that can meet none of ``nfes``.
    """
    if nfes and steps:
        raise UserError("--nfe and --num-steps contradict each other; give one of them")
    for flag, numbers in (("--nfe", nfes), ("--num-steps", steps)):
        if any(n < 1 for n in numbers):
            raise UserError(f"{flag} must be at least 1, got {min(numbers)}")
    for grid in grids:
        if grid not in GRIDS:
            raise UserError(f"grid {grid!r} is not known{did_you_mean(grid, GRIDS)}")
    usual = own.solver if diffusion is None else SDE_SOLVERS[0]
    ways: dict[Way, None] = {}
    for solver in solvers or (usual,):
        if _adaptive(solver, diffusion):
            ways[Way(solver, None, None)] = None
            continue
        counts = steps or (own.steps if diffusion is None else SDE_STEPS,)
        counts = _steps_for(solver, nfes, diffusion) if nfes else counts
        ways |= dict.fromkeys(Way(solver, grid, n, diffusion) for grid in grids or (own.grid,) for n in counts)
    if all(way.steps is None for way in ways):
        for flag, value in (("--grid", grids), ("--nfe", nfes), ("--num-steps", steps)):
            if value:
                raise UserError(f"{flag} is given, but {' and '.join(w.solver for w in ways)} chooses its own steps")
    return list(ways)


def _adaptive(solver: str, diffusion: float | str | None) -> bool:
    if diffusion is None:
        if solver in SDE_SOLVERS and solver != "heun":
            raise UserError(f"solver {solver!r} is for the stochastic equation; give --diffusion, such as 0.5")
        return get_solver(solver).adaptive
    if solver not in SDE_SOLVERS:
        raise UserError(f"solver {solver!r} does not take --diffusion{did_you_mean(solver, SDE_SOLVERS)}")
    return False


def _steps_for(solver: str, nfes: Sequence[int], diffusion: float | str | None) -> list[int]:
    """The numbers of steps that cost one of these numbers of evaluations."""
    if diffusion is None:
        cost = get_solver(solver).evaluations
        found = [nfe // cost for nfe in nfes if nfe % cost == 0]
    else:  # the trapezoid needs one evaluation less, as its last step goes to the mean
        cost = 1 + (solver == "heun")
        found = [(nfe + cost - 1) // cost for nfe in nfes if (nfe + cost - 1) % cost == 0]
    if not found:
        raise UserError(
            f"--nfe {' '.join(map(str, nfes))} holds none that {solver} can meet, at {cost} a step; add another, or"
            " leave it out"
        )
    return found
