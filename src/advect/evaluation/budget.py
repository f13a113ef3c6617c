"""What a report measures in the time it has: samples, evaluations and rows, from measured speed.

A report takes a tenth of its run's training, 20 seconds at least and two minutes at most. All that is chosen follows
from two numbers, samples a point and evaluations, so that a call that names them repeats the figures in the same
features.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from advect.core.errors import UserError
from advect.core.progress import rough_duration
from advect.evaluation.features import FeatureSpace
from advect.metrics.flow_calibration import DRAWS, HELD_OUT, CalibrationMetric
from advect.metrics.precision_recall import nearest_neighbours
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig, plan_sweep

SHARE, LEAST, MOST = 0.1, 20.0, 120.0
"""Share of the training time, and the bounds of a budget in seconds."""

USED, FEATURES, PATHS = 0.8, 0.4, 0.15
"""Shares of the time left that are planned, and of these given to training features and to trajectories."""

PIXELS_ALONE = "pixels instead of the features of a network trained on these data"

FEW_SECONDS = 10.0
"""Seconds that the least measurements may take even where the data took all the time."""

SAMPLES = 1000
NFES = (1, 2, 4, 8, 16, 32, 64)
SOLVERS, JUMPS = ("euler", "midpoint"), ("tau-leaping",)
"""Solvers that are compared, of flows along an ODE and of tokens."""
CALIBRATION = 0.3
"""Share of the time left for calibration."""

CALIBRATION_NFE = 16
"""Most evaluations of a draw for calibration."""

_ROWS_AND_DRAWS = ((HELD_OUT, DRAWS), (200, DRAWS), (200, 19), (100, 19), (0, DRAWS))
"""Held-out rows and draws for calibration, from the best."""

STEPS, FEW_STEPS = 36, 9
"""Steps of trajectories."""

_LADDER = ((1000, 64), (1000, 32), (500, 32), (500, 16), (250, 16), (250, 8), (100, 8), (100, 4), (50, 4), (50, 2))
"""Samples a point and most evaluations, from the best."""


def budget_seconds(training: float) -> float:
    """Seconds of a report by default, from those of the training."""
    return min(MOST, max(LEAST, SHARE * training))


@dataclass(frozen=True)
class Clock:
    """Time of a report: ``seconds`` in all, infinite for no limit, of which ``spent`` had gone when this was made."""

    seconds: float = math.inf
    now: Callable[[], float] = time.monotonic
    spent: float = 0.0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.now() - self.spent)

    @property
    def left(self) -> float:
        """Seconds left; may be negative."""
        return self.seconds - (self.now() - self.began)


@dataclass(frozen=True)
class Speed:
    """Measured seconds: of an evaluation of one sample, of loading a row, and of comparing a pair of rows."""

    evaluation: float
    row: float
    pair: float

    @classmethod
    def measure(cls, space: FeatureSpace, now: Callable[[], float]) -> Speed:
        """From a few samples and rows; what takes a second is measured once."""
        flow, train = space.flow, space.dataset.train

        def sample(count: int) -> float:
            began = now()
            made = flow.sample(count, steps=1, solver=compared_solvers(flow)[0], model_units=True)
            return (now() - began) / (count * made.nfe)

        def load(count: int) -> float:
            began, places = now(), torch.linspace(0, len(train) - 1, count).round().long()
            space.data(train, places)
            space.whole(train, places)
            return (now() - began) / count

        dim = space.whole(train, torch.zeros(1, dtype=torch.int64))[0].numel()
        x, y = torch.zeros(64, dim), torch.ones(1024, dim)

        def compare(count: int) -> float:
            began = now()
            nearest_neighbours(x[:count], y)
            return (now() - began) / (count * len(y))

        return cls(_grown(sample, 256), _grown(load, min(256, len(train))), _grown(compare, 64))


def _grown(seconds: Callable[[int], float], most: int) -> float:
    """Seconds each of the largest number, 1 to ``most``, before which all took less than half a second.

    The first call, which allocates, is not timed.
    """
    seconds(1)
    count, each = 1, seconds(1)
    while count < most and count * each < 0.5:
        count = min(most, 8 * count)
        each = seconds(count)
    return each


Sweep = Sequence[tuple[int, SamplerConfig]]
"""Points of a report: evaluations a sample, and sampler."""


@dataclass(frozen=True)
class Scope:
    """What a report measures.

    Attributes:
        samples: samples a point.
        nfes: numbers of evaluations.
        steps: of the trajectories; 0 for none.
        count: number of trajectories.
        calibration: held-out rows whose conditions are drawn for; 0 for none.
        draws: for each of them.
    """

    samples: int
    nfes: tuple[int, ...]
    steps: int = STEPS
    count: int = 8
    calibration: int = HELD_OUT
    draws: int = DRAWS

    @property
    def reference(self) -> int:
        """Most held-out rows for comparison."""
        return min(10_000, 10 * self.samples)

    @property
    def neighbours(self) -> int:
        """Most training rows among which nearest neighbours are searched."""
        return min(20_000, 20 * self.samples)

    @property
    def paths(self) -> float:
        """Evaluations of the trajectories, a sample."""
        return 2 * self.count * self.steps / self.samples

    def points(self, sweep: Sweep) -> Sweep:
        """Points of a sweep with at most as many evaluations."""
        return [(nfe, sampler) for nfe, sampler in sweep if nfe <= max(self.nfes)]

    def seconds(self, space: FeatureSpace, speed: Speed, sweep: Sweep) -> float:
        """About how long it takes."""
        train, held_out = len(space.dataset.train), len(space.dataset.held_out)
        n, near, real = min(self.samples, train), min(self.neighbours, train), min(self.reference, held_out)
        rows = n + near + 2 * real
        calls = n * sum(nfe for nfe, _ in self.points(sweep)) + 2 * self.count * self.steps
        calls += self.calibration_calls(space)
        return speed.evaluation * calls + speed.row * rows + speed.pair * (n + real) * near

    def calibration_calls(self, space: FeatureSpace) -> float:
        """Evaluations for calibration, 0 where there is none."""
        if not CalibrationMetric.needs <= space.offers:
            return 0.0
        rows = min(self.calibration, len(space.dataset.held_out))
        return rows * self.draws * CALIBRATION_NFE


def compared_solvers(flow: Flow) -> tuple[str, ...]:
    """Solvers whose samples are compared, the last one's most of all."""
    return JUMPS if flow.discrete else SOLVERS


def calibration_sampler(flow: Flow) -> SamplerConfig:
    """The run's sampler if it takes at most 16 evaluations, else midpoint steps of as many if it can."""
    if (flow.nfe(flow.sampler) or math.inf) <= CALIBRATION_NFE:
        return flow.sampler
    try:
        return plan_sweep(flow.sampler, flow.nfe, solvers=SOLVERS[-1:], nfes=(CALIBRATION_NFE,))[0]
    except UserError:  # exact steps at the ends take one more
        return plan_sweep(flow.sampler, flow.nfe, solvers=SOLVERS[:1], nfes=(CALIBRATION_NFE,))[0]


def plan_points(flow: Flow, nfes: Sequence[int]) -> Sweep:
    """Evaluations and samplers of all points, the cheapest first; the last solver's last is the last point.

    Raises UserError for evaluations that a solver cannot meet.
    """
    found = plan_sweep(flow.sampler, flow.nfe, solvers=compared_solvers(flow), nfes=nfes)
    return sorted(((flow.nfe(sampler) or 0, sampler) for sampler in found), key=lambda point: point[0])


def choose_scope(
    space: FeatureSpace, speed: Speed, sweep: Sweep, left: float, samples: int | None, nfes: Sequence[int] | None
) -> Scope | None:
    """The best scope that takes at most the planned share of ``left`` seconds, with the samples or evaluations given.

    None if none does, neither is given, and the least takes more than a few seconds.
    """
    planned, least, few = USED * left, None, False
    count = space.modality.trajectories
    ways = ((STEPS, count), (FEW_STEPS, count), (FEW_STEPS, -(-count // 2)), (0, 0))
    steps, count = next(way for way in ways if 2 * speed.evaluation * way[0] * way[1] <= PATHS * max(planned, 0))
    rows, draws = next(
        way for way in _ROWS_AND_DRAWS if _calibration_seconds(space, speed, *way) <= CALIBRATION * max(planned, 0)
    )
    for n, top in _LADDER:
        scope = Scope(samples or n, tuple(nfes or [nfe for nfe in NFES if nfe <= top]), steps, count, rows, draws)
        solvers = {str(sampler.solver) for _, sampler in scope.points(sweep)}
        if len(solvers) < len(compared_solvers(space.flow)):  # one takes more evaluations
            continue
        seconds = scope.seconds(space, speed, sweep)
        if seconds <= planned:
            return scope
        least, few = scope, seconds <= FEW_SECONDS
    return least if samples or nfes or few else None


def _calibration_seconds(space: FeatureSpace, speed: Speed, rows: int, draws: int) -> float:
    return speed.evaluation * Scope(1, (1,), calibration=rows, draws=draws).calibration_calls(space)


def differences(scope: Scope, whole: Scope, space: FeatureSpace) -> list[str]:
    """What is smaller than in the whole scope, as text."""
    train, held_out = len(space.dataset.train), len(space.dataset.held_out)
    pairs = (
        (min(scope.samples, train), min(whole.samples, train), "{:,} samples a point instead of {:,}"),
        (max(scope.nfes), max(whole.nfes), "at most {:,} evaluations instead of {:,}"),
        (min(scope.reference, held_out), min(whole.reference, held_out), "{:,} held-out rows instead of {:,}"),
        (
            min(scope.neighbours, train),
            min(whole.neighbours, train),
            "nearest neighbours among {:,} training rows instead of {:,}",
        ),
    )
    lines = [words.format(own, all_) for own, all_, words in pairs if own < all_]
    lines += _calibration_differences(scope, whole, space)
    if not scope.steps:
        return [*lines, "no trajectories"]
    fewer = [f"{scope.count} trajectories instead of {whole.count}"] if scope.count < whole.count else []
    return [
        *lines,
        *fewer,
        *([f"trajectories of {scope.steps} steps instead of {STEPS}"] if scope.steps < STEPS else []),
    ]


def _calibration_differences(scope: Scope, whole: Scope, space: FeatureSpace) -> list[str]:
    """How calibration is measured with less."""
    if not whole.calibration_calls(space):
        return []
    if not scope.calibration:
        return ["no calibration"]
    rows = len(space.dataset.held_out)
    own, all_ = (f"{min(s.calibration, rows)} rows and {s.draws} draws" for s in (scope, whole))
    return [f"calibration by {own} instead of {all_}"] if own != all_ else []


def describe_limits(result: Mapping[str, Any], run: Path, given: Mapping[str, object] | None = None) -> list[str]:
    """What a report left out, and how to have it, as sentences; none if it is whole.

    ``given``: flags of the report that its repetition needs, by name; those that are None were not.
    """
    limits = result.get("limits")
    if not limits:
        return []
    flags = [str(word) for name, value in (given or {}).items() if value is not None for word in (name, value)]
    again = shlex.join(["advect", "report", str(run), *flags])
    whole = f"all of it takes about {rough_duration(limits['whole_seconds'])} here: {again} --full"
    said = f"To take at most {limits['seconds']:.0f} seconds, this report has {'; '.join(limits['left_out'])}"
    if "frechet" not in result:
        return [f"{limits['seconds']:.0f} seconds are too short to measure this flow in; {whole}"]
    if PIXELS_ALONE in limits["left_out"]:  # without a bound on the time the network is trained
        return [f"{said}; {whole}"]
    numbers = f"--num-samples {result['frechet']['samples']} --nfes {' '.join(map(str, limits['nfes']))}"
    numbers += f" --seed {result['seed']}" if result.get("seed") else ""
    return [f"{said}; {whole}", f"These figures again: {again} {numbers}"]
