"""Distance of samples to held-out data against the cost of drawing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Conditions
from advect.evaluation.drawing import Flow, conditions_of, rows
from advect.evaluation.features import Features
from advect.evaluation.progress import Tick
from advect.metrics import GaussianFit
from advect.sampling import get_solver

NFES = (1, 2, 4, 8, 16, 32, 64)
SOLVERS = ("euler", "midpoint")
HELD_OUT_LIMIT = 10_000


@dataclass(frozen=True)
class Quality:
    """Squared Frechet distances to held-out data, in squared data units.

    Attributes:
        samples: how many samples each set has, the training data's for the floor included.
        held_out: how many held-out rows they are compared with.
        floor: the distance of that many training rows, which a perfect flow would reach.
        curves: for each solver its distances by the number of network evaluations a sample (NFE).
        final: the samples (n, *S) of the last solver at its largest NFE.
    """

    samples: int
    held_out: int
    features: Features
    floor: float
    curves: dict[str, dict[int, float]]
    final: Tensor = field(repr=False)

    @property
    def best(self) -> tuple[str, int, float]:
        """Solver, NFE and distance of the smallest distance; of equal ones, the cheapest."""
        points = [(d, nfe, solver) for solver, curve in self.curves.items() for nfe, d in curve.items()]
        distance, nfe, solver = min(points)
        return solver, nfe, distance


def plan(nfes: Sequence[int], solvers: Sequence[str]) -> dict[str, list[int]]:
    """The NFEs that each solver can meet exactly, ascending; UserError when one has none."""
    if not nfes or any(nfe < 1 for nfe in nfes):
        raise UserError(f"nfes must be whole numbers of at least 1, got {list(nfes)}; the default is {list(NFES)}")
    cost = {solver: get_solver(solver).evaluations for solver in solvers}
    chosen = {solver: sorted({nfe for nfe in nfes if nfe % cost[solver] == 0}) for solver in solvers}
    for solver, possible in chosen.items():
        if not possible:
            raise UserError(
                f"nfes {list(nfes)} hold no multiple of {cost[solver]}, which a step of {solver} costs; add one"
            )
    return chosen


def measure_quality(
    flow: Flow,
    train: Tensor,
    held_out: Tensor,
    *,
    features: Features,
    cond: Conditions | None = None,
    samples: int = 1000,
    nfes: Sequence[int] = NFES,
    solvers: Sequence[str] = SOLVERS,
    seed: int = 0,
    tick: Tick = lambda what, nfe: None,
) -> Quality:
    """Measure the distance from the flow's samples to held_out (M, *S), for each solver and NFE.

    ``cond`` holds the conditions (samples,) to ask for. All sets start from the same noise. The distance
    depends on the number of samples, so the floor takes as many rows of train (N, *S). ``tick`` is called with
    the NFE after each set. Raises UserError when ``samples`` exceeds N, and for NFEs that a solver cannot meet.
    """
    if not 2 <= samples <= len(train):
        raise UserError(f"samples must be in 2 .. {len(train)} (the number of training rows), got {samples}")
    held_out = held_out[rows(len(held_out), HELD_OUT_LIMIT, seed)]
    target = GaussianFit.from_samples(features(held_out), argument="held_out")
    real = features(train[rows(len(train), samples, seed)])
    floor = GaussianFit.from_samples(real, argument="train").distance(target)
    curves: dict[str, dict[int, float]] = {}
    x, wanted = train[:0], conditions_of(cond)
    for solver, possible in plan(nfes, solvers).items():
        curves[solver] = {}
        for nfe in possible:
            steps = nfe // get_solver(solver).evaluations
            x = flow.sample(samples, steps=steps, solver=solver, seed=seed, cond=wanted).detach().cpu()
            fit = GaussianFit.from_samples(features(x), argument=f"samples of {solver} with NFE {nfe}")
            curves[solver][nfe] = fit.distance(target)
            tick(f"{solver} at NFE {nfe}", nfe)
    return Quality(samples, len(held_out), features, floor, curves, x)
