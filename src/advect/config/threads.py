"""Number of threads of a training on a CPU: asked for, that of the run's beginning, or measured on its own step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from advect.config.build import build_loss, fit_source, source_tensors
from advect.config.build_trainer import new_state
from advect.config.config import Config, NetworkConfig, TrainingConfig
from advect.core.device import pick_precision
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.threads import (
    ThreadChoice,
    count_cores,
    given_by_environment,
    kept_threads,
    limit_threads,
    measure_threads,
)
from advect.core.types import Batch, DataSpec
from advect.data import Dataset, Split
from advect.distributed.comm import broadcast_object
from advect.distributed.context import RunContext
from advect.losses import Loss
from advect.networks.encoders import Encoder
from advect.training.guards import explain_oom
from advect.training.step import Step

ENOUGH = 0.1
"""Seconds of a step that are enough to compare numbers of threads by; a larger batch would cost more."""

TIMED = 0.5
"""Seconds of steps by which the length of a run is estimated."""


def choose_threads(
    context: RunContext,
    network: NetworkConfig,
    t: TrainingConfig,
    spec: DataSpec,
    loss_fn: Loss,
    split: Split,
    *,
    steps: int,
    begun: int | None = None,
    encoders: Mapping[str, Encoder] | None = None,
) -> ThreadChoice:
    """Choose and set PyTorch's threads in this process.

    --threads comes first, then the ``begun`` threads of a run to go on bit for bit, OMP_NUM_THREADS, and last a
    measurement, in a single process on a CPU, of some of the run's own steps, on weights that are thrown away.
    """
    number, variable = t.threads or begun, given_by_environment()
    if number is not None:
        torch.set_num_threads(number)
        return ThreadChoice(number, "--threads" if t.threads else "as the run began")
    limit_threads()
    now = torch.get_num_threads()
    if variable is not None:
        return ThreadChoice(now, variable)
    if context.env.world > 1 or context.device.type != "cpu":
        return ThreadChoice(now, "not measured, for " + ("a GPU" if context.env.world == 1 else "several processes"))
    with explain_oom():
        kept = loss_fn.state_dict()  # learned times
        step, rows = trial_step(context, network, t, spec, loss_fn, split, encoders), t.batch_size or 1
        part = _enough_rows(step, rows)
        seconds = 60 * t.max_minutes if t.max_minutes else float("inf")
        choice = measure_threads(lambda: step(part), times=rows / part * steps, seconds=seconds)
        loss_fn.load_state_dict(kept)
    return choice


def trial_step(
    context: RunContext,
    network: NetworkConfig,
    t: TrainingConfig,
    spec: DataSpec,
    loss_fn: Loss,
    split: Split,
    encoders: Mapping[str, Encoder] | None = None,
) -> Callable[[int], None]:
    """A function that takes a training step on a number of rows, with weights of its own."""
    state = new_state(context, network, t, spec, loss_fn, encoders=encoders)
    half = pick_precision(t.mixed_precision, context.device, t.half)
    step = Step(state, device=context.device, grad_clip=t.grad_clip, autocast=half, accumulate=t.accumulate)
    one = split.fetch(np.zeros(1, np.int64))

    def take(rows: int) -> None:
        same = torch.zeros(rows, dtype=torch.int64)
        cond = None if one.cond is None else {name: value[same] for name, value in one.cond.items()}
        batch = Batch(one.x1[same], cond, None if one.x0 is None else one.x0[same]).to(context.device)
        rng = CounterRng(stream_seed(context.seed, Stream.STEP), 0, rows)
        step.take(loss_fn, loss_fn.sample(batch, rng), t.learning_rate)

    return take


def seconds_per_step(context: RunContext, config: Config, dataset: Dataset, *, steps: int) -> float:
    """Seconds that each of ``steps`` training steps takes here, about, with the threads that suit them: a few are
    timed, of fewer rows where they take long.
    """
    t, spec, split = config.training, dataset.spec, dataset.train
    loss = build_loss(config.method, dataset, fit_source(config.method, dataset), source_tensors(dataset))
    with explain_oom(), kept_threads():
        choose_threads(context, config.network, t, spec, loss, split, steps=steps)
        step, batch = trial_step(context, config.network, t, spec, loss, split), t.batch_size or 1
        rows, taken = _enough_rows(step, batch), 0
        began = _now()
        while taken < 3 or _now() - began < TIMED:
            step(rows)
            taken += 1
        if context.device.type == "cuda":
            torch.cuda.synchronize()
        return (_now() - began) / taken * batch / rows


def _now() -> float:
    """The first process's clock in seconds, as steps are taken together: all must end with the same one."""
    return broadcast_object(time.perf_counter())


def _enough_rows(step: Callable[[int], None], most: int) -> int:
    """Rows, at most ``most``, with which a step takes long enough to be measured."""
    rows = min(most, 8)
    step(rows)
    while True:
        began = _now()
        step(rows)
        if rows == most or _now() - began >= ENOUGH:
            return rows
        rows = min(most, 4 * rows)


def too_many(threads: int) -> str | None:
    """What to say of more threads than cores, or None."""
    cores = count_cores()
    if threads <= cores:
        return None
    return f"{threads} threads are more than the {cores} cores that this process may use, which is slow; see --threads"
