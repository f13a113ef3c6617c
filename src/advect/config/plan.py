"""Sizes of a run that follow from its data: batch, steps and warm-up.

Presets and users may leave batch size, epochs and warm-up open (None); :func:`resolve` fills them in from the number
of rows, the modality and the device. Whatever is given stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from advect.config.config import Config, MethodConfig, NetworkConfig, TrainingConfig
from advect.core import registry
from advect.core.errors import UserError
from advect.core.types import Category, DataSpec, Length
from advect.data.modality import Recipe

WARMUP_SHARE = 20
"""A planned warm-up takes at most one step in so many."""

FEWEST = 10
"""Rows below which a model does no more than repeat them."""

FEW = 20_000
"""Rows up to which a run is watched for overtraining by default."""

FEW_ELEMENTS = 64
"""Elements of a sample up to which the held-out loss tells when to stop."""

SLOWER = 1.5
"""A smaller batch may take so many times the time by the row to save time."""

EVALUATIONS = 40
"""Measurements of the held-out loss in a run."""

_FEW_ROWS, _FEW_LARGE_ROWS = 4, 16
"""A planned batch takes at most one row in so many, and of samples of many elements, which no held-out loss watches
and whose steps take time by the row; see docs/experiments/defaults.md.
"""
_SMALLEST, _SMALLEST_TIMED = 8, 16


@dataclass(frozen=True)
class Plan:
    """Sizes of a run on ``rows`` rows; ``batch`` is that of all processes together, ``least`` the steps that learning
    takes on such data, ``needed`` those of this run, which may be shorter by its epochs, and ``usual`` the batch size
    where none is given and time is enough; ``short`` if it is not, so that the batch is smaller.
    """

    rows: int
    batch: int
    steps: int
    warmup: int
    why: str
    least: int = 0
    usual: int = 0
    short: bool = False

    @property
    def needed(self) -> int:
        """Steps without which a run ends before it learned what it could."""
        return min(self.steps, self.least)

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps * self.batch / self.rows

    def last_step(self, t: TrainingConfig) -> int:
        """Last step, minutes aside."""
        return self.steps if t.max_steps is None else min(self.steps, t.max_steps)

    def words(self, t: TrainingConfig) -> str:
        """The plan in a line."""
        end = f"{self.steps:,} steps"
        if t.max_minutes is not None:
            end = f"as many steps as {t.max_minutes:g} minutes allow, at most {self.steps:,}"
        rather = f" rather than {self.usual:,}, as time is short" if self.short else ""
        parts = [f"batches of {self.batch:,}{rather}", f"{self.warmup:,} of warm-up"]
        parts += ["ends when the held-out loss no longer falls"] if t.early_stopping == "yes" else []
        return f"plan: {end} ({self.why}), {', '.join(parts)}"

    def minutes(self, pace: float, t: TrainingConfig) -> float:
        """Length of the run at ``pace`` seconds a step."""
        return min(self.last_step(t) * pace / 60, math.inf if t.max_minutes is None else t.max_minutes)


def make_plan(
    t: TrainingConfig,
    recipe: Recipe,
    rows: int,
    *,
    elements: int = 1,
    world: int = 1,
    gpu: bool = False,
    steps: int | None = None,
) -> Plan:
    """Sizes for training on ``rows`` rows; ``steps`` is their number if given.

    A batch holds at most a quarter of the rows, a sixteenth of samples of more than :data:`FEW_ELEMENTS` elements. The
    run takes ``recipe.epochs`` passes, but never fewer steps than learning takes, nor more than a CPU or GPU does in
    reasonable time (no such bound with --max-minutes, which ends the schedule by the clock).
    """
    usual = _planned_batch(recipe, rows, _FEW_ROWS if elements <= FEW_ELEMENTS else _FEW_LARGE_ROWS)
    batch = world * (t.batch_size or max(1, usual // world))
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
    return Plan(rows, batch, steps, warmup, why, least=recipe.least_steps, usual=usual)


def resolve(
    config: Config, modality: str, rows: int, held_out: int, *, elements: int = 1, world: int = 1, gpu: bool = False
) -> tuple[Config, Plan]:
    """The configuration with every open size filled in for ``world`` processes, and the plan.

    ``elements`` are those of a sample: of many, as images and genes have, the held-out loss rises long before samples
    are good. Raises UserError for early stopping where nothing is held out, or the best is found in another way.
    """
    t, evaluated = config.training, bool(config.output.eval_every)
    plan = make_plan(t, recipe_of(modality), rows, elements=elements, world=world, gpu=gpu)
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


class Trouble(NamedTuple):
    """What will go wrong with a run, a sentence, and the flags that mend it."""

    title: str
    fix: str

    def __str__(self) -> str:
        return f"{self.title[0].lower()}{self.title[1:]}; {self.fix}"


def find_troubles(plan: Plan, t: TrainingConfig, pace: float | None = None) -> list[Trouble]:
    """What will go wrong with a run of this plan, told by ``advect train`` before it starts, and by the doctor.

    ``pace`` is the length of a step here in seconds, if known.
    """
    last = plan.last_step(t)
    found = [large_batch(plan), short_run(last, plan.least, plan.warmup)]
    if found[-1] is None:  # else the rest follows from it
        found.append(long_warmup(last, plan.warmup))
        found.append(long_average(last, t.ema_decay) if t.use_ema and t.max_minutes is None else None)
    if t.max_minutes is not None and pace is not None:
        found.append(short_time(t.max_minutes, pace, min(plan.needed, last)))
    return [trouble for trouble in found if trouble is not None]


def find_rare(spec: DataSpec, rows: int) -> list[Trouble]:
    """Values of conditions that have too few of the ``rows`` training rows."""
    found = []
    for name, c in spec.conditions.items():
        if isinstance(c, Category):
            counts = {value: round(share * rows) for value, share in zip(c.names, c.frequencies, strict=True)}
            found.append(rare_values(name, counts))
    return [trouble for trouble in found if trouble is not None]


def find_biases(method: MethodConfig, spec: DataSpec) -> list[Trouble]:
    """Where a coupling makes the noise depend on what the network is told, which noise to sample from does not."""
    if not method.part("coupling").across_conditions:  # pyright: ignore[reportAttributeAccessIssue]
        return []
    found, pairs = [], f"--coupling {method.coupling} pairs noise with"
    if spec.augmentation:
        title = f"{pairs} changed and unchanged images alike, which biases samples"
        found.append(Trouble(title, "take --augment none, or --coupling conditional-ot where the data have labels"))
    if any(not isinstance(kind, Length) for kind in spec.conditions.values()):
        title = f"{pairs} data whatever their conditions, which biases samples given a condition"
        found.append(Trouble(title, "--coupling conditional-ot does not"))
    return found


def find_fast_times(method: MethodConfig, network: NetworkConfig) -> list[Trouble]:
    """Where a loss with derivatives in time meets a network that embeds it by fast waves."""
    kind = network.options.get("time_embedding", "sinusoidal")
    takes = "time_embedding" in registry.parameters(network.part("network"))
    if not method.part("objective").derives_time or not takes or kind == "smooth":  # pyright: ignore[reportAttributeAccessIssue]
        return []
    title = f"--objective {method.objective} takes derivatives in time, which --time-embedding {kind} makes large"
    return [Trouble(f"{title}: it may diverge", "train from nothing with --time-embedding smooth, or take lagrangian")]


def large_batch(plan: Plan) -> Trouble | None:
    """Whether a batch holds every row more than once, other than of a few rows."""
    if plan.batch <= max(plan.rows, plan.usual):
        return None
    return Trouble(
        f"A batch of {plan.batch:,} holds each of the {plan.rows:,} training rows {plan.batch / plan.rows:.2g} times",
        f"give --batch-size {plan.usual}, as planned, or leave it out",
    )


def short_run(last: int, least: int, warmup: int = 0) -> Trouble | None:
    """Whether ``last`` steps are less than a tenth of the ``least`` that are planned."""
    if 10 * last >= least:
        return None
    steps = "1 step is" if last == 1 else f"{last:,} steps are"
    return Trouble(
        f"{steps} too few to learn from such data: {least:,} are planned at least"
        + (f", and {warmup:,} are warm-up" if 2 * warmup > last else ""),
        "give a larger --max-steps or --num-epochs, or leave them out",
    )


def short_time(minutes: float, pace: float, needed: int) -> Trouble | None:
    """Whether so many minutes, at ``pace`` seconds a step, are too few."""
    steps = int(60 * minutes / pace)
    if steps >= needed:
        return None
    return Trouble(
        f"--max-minutes {minutes:g} is time for about {steps:,} step{'s' * (steps != 1)} here, and learning takes "
        f"some {needed:,}",
        f"give --max-minutes {math.ceil(needed * pace / 6) / 10:g} or more",
    )


def long_warmup(last: int, warmup: int) -> Trouble | None:
    """Whether a warm-up fills more than half of a run of ``last`` steps."""
    if not warmup or 2 * warmup <= last:
        return None
    return Trouble(
        f"The warm-up takes {warmup:,} of {last:,} steps, so that little is learned",
        f"give --lr-warmup-steps {last // WARMUP_SHARE}, a {WARMUP_SHARE}th of the run, or train longer",
    )


def long_average(last: int, decay: float) -> Trouble | None:
    """Whether the EMA's horizon, 1 / (1 - decay), is longer than a run of ``last`` steps; it is warmed up
    (:class:`advect.training.EMA`), so the average then spans a ninth of the run, whatever the decay.
    """
    horizon = 1 / (1 - decay)
    if horizon <= last + 0.5:
        return None
    fitting = max(round(1 - 10 / last, len(str(last))), 0.0)
    return Trouble(
        f"The average of the weights would reach back {horizon:,.0f} steps, more than the {last:,} of the run",
        f"give --ema-decay {fitting:g}, which reaches back a tenth of them, or train longer",
    )


def rare_values(name: str, counts: Mapping[str, int]) -> Trouble | None:
    """Values of a condition with too few training rows to be learned."""
    rare = sorted((value for value, count in counts.items() if count < FEWEST), key=lambda value: counts[value])
    if not rare:
        return None
    some = ", ".join(f"{value} ({counts[value]})" for value in rare[:5]) + ", ..." * (len(rare) > 5)
    values = "1 value" if len(rare) == 1 else f"{len(rare):,} values"
    return Trouble(
        f"{values} of {name} {'has' if len(rare) == 1 else 'have'} fewer than {FEWEST} training rows, too few to "
        f"learn from: {some}",
        "bring more of their rows, join them with others, or leave them out",
    )


def recipe_of(modality: str) -> Recipe:
    """How long to train on data of a modality."""
    return registry.get("modality", modality).recipe  # pyright: ignore[reportAttributeAccessIssue]


def batch_for(plan: Plan, minutes: float, pace: float) -> int:
    """A batch, at most the planned one, of which ``minutes`` allow as many steps as learning takes, if those of the
    planned one take ``pace`` seconds and others time by the row; at least :data:`_SMALLEST_TIMED`.
    """
    share = 60 * minutes / (pace * max(plan.needed, 1))
    if share >= 1:
        return plan.batch
    return min(plan.batch, max(_SMALLEST_TIMED, 2 ** round(math.log2(plan.batch * share))))


def _planned_batch(recipe: Recipe, rows: int, few: int) -> int:
    """Largest power of two up to the recipe's and to one row in ``few``."""
    most = max(_SMALLEST, rows // few)
    return min(recipe.batch_size, 2 ** (most.bit_length() - 1))
