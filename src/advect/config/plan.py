"""Sizes of a run that follow from its data: batch, steps and warm-up.

Presets and users may leave batch size, epochs and warm-up open (None); :func:`resolve` fills them in from the number
of rows, the modality and the device. Whatever is given stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from advect.config.config import Config, TrainingConfig
from advect.core import registry
from advect.core.errors import UserError
from advect.data.modality import Recipe

WARMUP_SHARE = 20
"""A planned warm-up takes at most one step in so many."""

FEWEST = 10
"""Rows below which a model does no more than repeat them."""

FEW = 20_000
"""Rows up to which a run is watched for overtraining by default."""

FEW_ELEMENTS = 64
"""Elements of a sample up to which the held-out loss tells when to stop."""

EVALUATIONS = 40
"""Measurements of the held-out loss in a run."""

_FEW_ROWS = 4
"""A planned batch takes at most one row in so many."""
_SMALLEST = 8


@dataclass(frozen=True)
class Plan:
    """Sizes of a run on ``rows`` rows; ``batch`` is that of all processes together, and ``needed`` the fewest steps in
    which anything is learned.
    """

    rows: int
    batch: int
    steps: int
    warmup: int
    why: str
    needed: int = 0

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps * self.batch / self.rows

    def words(self, t: TrainingConfig) -> str:
        """The plan in a line."""
        end = f"{self.steps:,} steps"
        if t.max_minutes is not None:
            end = f"as many steps as {t.max_minutes:g} minutes allow, at most {self.steps:,}"
        parts = [f"batches of {self.batch:,}", f"{self.warmup:,} of warm-up"]
        parts += ["ends when the held-out loss no longer falls"] if t.early_stopping == "yes" else []
        return f"plan: {end} ({self.why}), {', '.join(parts)}"

    def minutes(self, pace: float, t: TrainingConfig) -> float:
        """Length of the run at ``pace`` seconds a step."""
        steps = self.steps if t.max_steps is None else min(self.steps, t.max_steps)
        return min(steps * pace / 60, math.inf if t.max_minutes is None else t.max_minutes)


def make_plan(
    t: TrainingConfig, recipe: Recipe, rows: int, *, world: int = 1, gpu: bool = False, steps: int | None = None
) -> Plan:
    """Sizes for training on ``rows`` rows; ``steps`` is their number if given.

    A batch holds at most a quarter of the rows. The run takes ``recipe.epochs`` passes, but never fewer steps than
    learning takes, nor more than a CPU or GPU does in reasonable time (no such bound with --max-minutes, which ends
    the schedule by the clock).
    """
    batch = world * (t.batch_size or max(1, _planned_batch(recipe, rows) // world))
    if steps is not None:
        why = "as given"
    elif t.num_epochs is not None:
        steps, why = max(1, math.ceil(t.num_epochs * rows / batch - 1e-6)), f"{t.num_epochs:g} epochs"
    else:
        wanted = math.ceil(recipe.epochs * rows / batch)
        most = recipe.gpu_steps if gpu else recipe.cpu_steps
        if wanted < recipe.least_steps:
            steps, why = recipe.least_steps, f"the fewest that learning takes, for {rows:,} rows"
        elif wanted > most and t.max_minutes is None:
            steps, why = most, f"the most by default on a {'GPU' if gpu else 'CPU'}, for {rows:,} rows"
        else:
            steps, why = wanted, f"{recipe.epochs} passes over {rows:,} rows"
    given = t.lr_warmup_steps
    warmup = min(recipe.warmup, steps // WARMUP_SHARE) if given is None else given
    return Plan(rows, batch, steps, warmup, why, needed=min(steps, recipe.least_steps))


def resolve(
    config: Config, modality: str, rows: int, held_out: int, *, elements: int = 1, world: int = 1, gpu: bool = False
) -> tuple[Config, Plan]:
    """The configuration with every open size filled in for ``world`` processes, and the plan.

    ``elements`` are those of a sample: of many, as images and genes have, the held-out loss rises long before samples
    are good. Raises UserError for early stopping where nothing is held out, or the best is found in another way.
    """
    t, evaluated = config.training, bool(config.output.eval_every)
    plan = make_plan(t, recipe_of(modality), rows, world=world, gpu=gpu)
    if t.early_stopping == "yes" and not held_out:
        raise UserError("--early-stopping yes needs held-out rows, and there are none; give --held-out 0.1, say")
    if t.early_stopping == "yes" and evaluated:
        raise UserError("--early-stopping yes and --eval-every each keep a best checkpoint; give one of them")
    few = t.num_epochs is None and held_out > 0 and rows <= FEW and elements <= FEW_ELEMENTS
    early = t.early_stopping if t.early_stopping != "auto" else "yes" if few and not evaluated else "no"
    filled = {
        "early_stopping": early,
        "batch_size": plan.batch // world,
        "num_epochs": t.num_epochs or plan.epochs,
        "lr_warmup_steps": plan.warmup,
    }
    return replace(config, training=t.replaced(**filled)), plan


def recipe_of(modality: str) -> Recipe:
    """How long to train on data of a modality."""
    return registry.get("modality", modality).recipe  # pyright: ignore[reportAttributeAccessIssue]


def _planned_batch(recipe: Recipe, rows: int) -> int:
    """Largest power of two up to the recipe's and to a quarter of the rows."""
    most = max(_SMALLEST, rows // _FEW_ROWS)
    return min(recipe.batch_size, 2 ** (most.bit_length() - 1))
