"""advect train [PRESET] [flags]: train a flow; the default preset is digits, which needs no download."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advect.checkpoint.async_writer import explain_run_error
from advect.checkpoint.manifest import (
    checkpoint_step,
    find_checkpoint,
    remove_leftovers,
)
from advect.config.arguments import parse_train
from advect.config.build import build_dataset, build_loss, fit_source, source_tensors
from advect.config.build_trainer import (
    build_callbacks,
    check_config,
    check_method,
    check_sizes,
    new_state,
    new_trainer,
)
from advect.config.config import Config
from advect.config.flags import launch_processes
from advect.config.plan import (
    FEWEST,
    SLOWER,
    Plan,
    batch_for,
    find_biases,
    find_fast_times,
    find_rare,
    find_troubles,
    resolve,
)
from advect.config.resume import check_folder, check_same_run, lock_run_dir, resolve_checkpoint, write_environment
from advect.config.threads import choose_threads, seconds_per_step, too_many
from advect.core.device import pick_precision
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, make_folder, remove_partial
from advect.core.progress import rough_duration
from advect.core.threads import ThreadChoice, kept_threads
from advect.data import Dataset
from advect.distributed.comm import broadcast_object, sync_errors
from advect.distributed.context import RunContext, run_context
from advect.model.load import ModelMetadata, build_flow, initial_weights, read_model_metadata
from advect.training import LearningRate, StopCriteria, Trainer
from advect.training.guards import STOPPED_EARLY
from advect.training.state import MODEL, read_progress

logger = logging.getLogger(__name__)

SHARED = True

COPIES = "copies.csv"
"""File of a run folder that lists the samples left out."""


def run(words: list[str]) -> None:
    """Run ``advect train`` with the words after it. Raises UserError."""
    notes: list[str] = []
    with sync_errors():
        preset, a = parse_train(words, notes)
    if a.dry_run:
        with sync_errors():
            check_config(a.settings)
            comment = _dry_plan(a.settings)
        for line in (a.settings.to_yaml(preset).rstrip("\n") + comment).split("\n"):
            logger.info(line)
        return
    if a.nproc != 1:
        launch_processes("train", words, a.nproc, a.settings.training.device)
    for line in notes:
        logger.info(line)
    where = {"run_dir": a.run_dir, "resume_from": a.resume_from, "resume": a.resume}
    folder, reason = train(a.settings, preset, **where)
    typed = shlex.quote(str(folder))
    if reason == STOPPED_EARLY:
        logger.info(
            f"finished early, as the held-out loss no longer falls: {folder}; to go on all the same, type: "
            f"advect train --resume-from {typed} --early-stopping no"
        )
    elif reason != "finished":
        more = f" --max-steps {2 * checkpoint_step(find_checkpoint(folder))}" if reason == "max-steps" else ""
        logger.info(f"stopped by {reason}; to go on, type: advect train --resume-from {typed}{more}")
    else:
        logger.info(f"finished: {folder}")
    logger.info(f"next: advect sample {typed}   advect report {typed}")
    exit_by_signal(reason)


def exit_by_signal(reason: str) -> None:
    """Exit with a signal's code if one ended the run."""
    if reason.startswith("SIG"):
        sys.exit(128 + signal.Signals[reason])


def train(
    config: Config,
    preset: str,
    *,
    run_dir: Path | None = None,
    resume_from: Path | None = None,
    resume: str = "no",
) -> tuple[Path, str]:
    """Train into ``run_dir`` (runs/PRESET); return the folder and the reason of the end.

    Args:
        resume_from: run folder or checkpoint to continue, bit for bit, in its folder unless ``run_dir`` is given.
        resume: "auto" continues from the newest undamaged checkpoint in ``run_dir``, if any.

    Checked before writing. Raises UserError for settings that do not fit the data, a run folder in use, and a
    checkpoint of another network or data.
    """
    usual = run_dir or Path("runs") / preset
    with run_context(config.training.device, run_dir=usual, seed=config.training.seed) as context:
        with sync_errors():
            begin = resolve_checkpoint(usual, resume_from, resume) if context.env.is_first else None
        begin = broadcast_object(begin)
        if run_dir is None and begin is not None:
            context = replace(context, run_dir=begin.parent.parent)
        with explain_run_error(context.run_dir), kept_threads():
            return context.run_dir, _train(config, preset, context, begin, resume == "auto")


def _train(config: Config, preset: str, context: RunContext, checkpoint: Path | None, again: bool) -> str:
    run_dir = context.run_dir
    with ExitStack() as claims:
        with sync_errors():
            check_folder(run_dir, checkpoint, again)
            if run_dir.is_dir():  # a folder in use is refused before the data are read
                claims.enter_context(lock_run_dir(run_dir, checkpoint, again))
            source, noise = _open(config)
            source.train.fetch(np.zeros(1, np.int64))  # unreadable data fail before there is a run folder
            config, plan, pace = _plan_minutes(_as_begun(config, context, checkpoint), source, context, checkpoint)
            threads = _threads(config, plan, source, noise, context, checkpoint)
            config = replace(config, training=config.training.replaced(threads=threads.threads))
            metadata = ModelMetadata.from_run(config, preset, source, noise)
            if checkpoint:
                check_same_run(read_model_metadata(checkpoint / MODEL), metadata, checkpoint)
            begin = None if checkpoint else config.training.init_from
            weights = begin and initial_weights(begin, config.network, config.method, source.spec)
        trainer = _new_trainer(config, plan, source, metadata, context, weights)
        if checkpoint:
            trainer.state.load(checkpoint)
        with sync_errors():
            if context.env.is_first:
                make_folder(run_dir, "--run-dir")
                claims.close()
                claims.enter_context(lock_run_dir(run_dir, checkpoint, again))
                remove_leftovers(run_dir / "checkpoints")
                for folder in (run_dir, run_dir / "samples"):
                    remove_partial(folder)
                if checkpoint and config.training.posthoc_ema:
                    from advect.training.posthoc_ema import SNAPSHOTS, bring

                    bring(checkpoint.parent.parent / SNAPSHOTS, run_dir / SNAPSHOTS)
                atomic_write_text(run_dir / "config.yaml", config.to_yaml(preset))
                if source.real.copies is not None:
                    atomic_write_text(run_dir / COPIES, source.real.copies.to_csv())
                step = trainer.state.progress.step
                write_environment(context, fingerprint=source.fingerprint, step=step, steps=plan.steps)
        _announce(config, preset, source, trainer, context, plan, pace)
        _announce_threads(threads, trainer)
        reason = trainer.run()
    if unreadable := getattr(source, "unreadable", None):
        first, why = next(iter(unreadable.items()))
        images = "1 image" if len(unreadable) == 1 else f"{len(unreadable):,} images"
        logger.info(f"note: {images} could not be read and others took their places, the first {first} ({why})")
    return reason


def _open(config: Config) -> tuple[Dataset, dict[str, Any]]:
    """Training data, and arguments of their source distribution."""
    source, pairs = build_dataset(config.data), config.training.pairs
    if source.holes is not None and not config.method.masked:
        raise UserError(f"{source.name} has {source.holes.words()}, and --mask none knows none; give --mask random")
    if (config.method.coupling == "pairs") != (pairs is not None):
        raise UserError("--coupling pairs and --pairs PATH go together; give both, as advect reflow does, or neither")
    if pairs is not None:
        from advect.model.pairs import open_pairs

        return open_pairs(pairs, source)
    return source, fit_source(config.method, source)


def _new_trainer(
    config: Config,
    plan: Plan,
    source: Dataset,
    metadata: ModelMetadata,
    context: RunContext,
    weights: Mapping[str, Tensor] | None,
) -> Trainer:
    """Trainer with network, loss, data and callbacks."""
    t = config.training
    check_method(config.method, t)
    loss = build_loss(config.method, source, metadata.noise, metadata.source_tensors)
    header = {"metadata": metadata.to_text(), "data": metadata.tensors}
    state = new_state(context, config.network, t, source.spec, loss, weights=weights, **header)
    limits = StopCriteria(steps=plan.steps, max_steps=t.max_steps, max_minutes=t.max_minutes)
    schedule = t.build("lr_schedule")
    rate = LearningRate(peak=t.learning_rate, warmup=plan.warmup, total=plan.steps, schedule=schedule)
    check_sizes(state.twin, source, config.method)
    flow = build_flow(metadata, state.net, context.device)
    flow.nfe(flow.sampler)  # raises for steps that such a flow cannot take
    callbacks = build_callbacks(context, config, flow, loss, source, plan)
    return new_trainer(
        context,
        t,
        state,
        loss,
        source.train,
        rate=rate,
        limits=limits,
        log_every=config.output.log_every,
        log_gradients=config.output.log_gradients,
        callbacks=callbacks,
    )


def _planned(config: Config, source: Dataset, context: RunContext) -> tuple[Config, Plan]:
    """The configuration with what follows from the data, and the plan."""
    config = replace(config, data=config.data.replaced(augment=source.real.augmentation))
    rows, held_out, gpu = len(source.train), len(source.held_out), context.device.type != "cpu"
    elements, world = source.modality.size, context.env.world
    return resolve(config, source.spec.modality, rows, held_out, elements=elements, world=world, gpu=gpu)


def _plan_minutes(
    config: Config, source: Dataset, context: RunContext, checkpoint: Path | None = None
) -> tuple[Config, Plan, float | None]:
    """:func:`_planned`, and seconds of a step here where minutes are given to a new run in a single process.

    Where they are too few for the steps that learning takes, the batch is smaller, unless it is given or smaller ones
    take far longer by the row.
    """
    t = config.training
    filled, plan = _planned(config, source, context)
    if t.max_minutes is None or checkpoint is not None or context.env.world > 1:
        return filled, plan, None
    pace = seconds_per_step(context, filled, source, steps=plan.steps)
    batch = batch_for(plan, t.max_minutes, pace)
    if t.batch_size is not None or batch == plan.batch:
        return filled, plan, pace
    other, smaller = _planned(replace(config, training=t.replaced(batch_size=batch)), source, context)
    quick = seconds_per_step(context, other, source, steps=smaller.steps)
    if quick * plan.batch > SLOWER * pace * batch:
        return filled, plan, pace
    return other, replace(smaller, short=True), quick


def _as_begun(config: Config, context: RunContext, checkpoint: Path | None) -> Config:
    """With the batch of the run to go on, which may have followed from its time, unless one is given."""
    if checkpoint is None or config.training.batch_size is not None:
        return config
    each = read_model_metadata(checkpoint / MODEL).config["training"].get("batch_size")
    batch = (each or 0) * read_progress(checkpoint)[1].world
    if not batch or batch % context.env.world:
        return config
    return replace(config, training=config.training.replaced(batch_size=batch // context.env.world))


def _dry_plan(config: Config) -> str:
    """The plan as a YAML comment, with what will go wrong and the time here; empty if the data are not there."""
    place = config.data.data_dir
    if config.training.pairs is not None or (config.data.dataset.place and not (place and Path(place).exists())):
        return ""
    with run_context(config.training.device, seed=config.training.seed) as context:
        source = build_dataset(config.data)
        config, plan, pace = _plan_minutes(config, source, context)
        pace = pace or seconds_per_step(context, config, source, steps=plan.steps)
    t = config.training
    troubles = *find_troubles(plan, t, pace), *find_rare(source.spec, len(source.train))
    notes = "".join(f"\n# note: {trouble}" for trouble in troubles)
    return f"{notes}\n# {plan.words(t)}; about {rough_duration(60 * plan.minutes(pace, t))} on this machine"


def _threads(
    config: Config,
    plan: Plan,
    source: Dataset,
    noise: dict[str, Any],
    context: RunContext,
    checkpoint: Path | None,
) -> ThreadChoice:
    """PyTorch's threads, set in this process; a resumed run keeps its own, on as many processes as before."""
    t, begun, step = config.training, None, 0
    if checkpoint:
        progress, facts = read_progress(checkpoint)
        there = read_model_metadata(checkpoint / MODEL).config["training"].get("threads")
        begun, step = there if facts.world == context.env.world else None, progress.step
        if None not in (t.threads, begun) and t.threads != begun:
            logger.info(
                f"note: --threads was {begun} there and is {t.threads} here, so that sums may differ in the last bits"
            )
    loss = build_loss(config.method, source, noise, source_tensors(source))
    steps = min(plan.steps, t.max_steps or plan.steps) - step
    return choose_threads(context, config.network, t, source.spec, loss, source.train, steps=steps, begun=begun)


def _announce_threads(choice: ThreadChoice, trainer: Trainer) -> None:
    """The threads in a line, for a training on a CPU."""
    if trainer.device.type != "cpu":
        return
    logger.info(f"threads: {choice}")
    if note := too_many(choice.threads):
        logger.info(f"note: {note}")


def _announce(
    config: Config,
    preset: str,
    source: Dataset,
    trainer: Trainer,
    context: RunContext,
    plan: Plan,
    pace: float | None,
) -> None:
    t, limits, step, net = config.training, trainer.limits, trainer.state.progress.step, config.network.part("network")
    params = sum(p.numel() for p in trainer.state.twin.parameters())
    logger.info(
        f"{preset}: {len(source.train):,} training and {len(source.held_out):,} held-out samples of shape "
        f"{tuple(source.spec.shape)}; {net.__name__} with {params:,} parameters on {trainer.device}"
    )
    begin = f"resuming at step {step:,}" if step else "training"
    if step >= limits.last_step:
        limit = "--num-epochs" if limits.max_steps is None or limits.max_steps > limits.steps else "--max-steps"
        logger.info(
            f"note: nothing is left to train: step {step:,} is done, and {limit} ends the run at step "
            f"{limits.last_step:,}; raise it to go on"
        )
    else:
        logger.info(f"{begin} to step {limits.last_step:,} in {context.run_dir}")
        logger.info(f"{plan.words(t)}; minutes are told once they are measured")
    if (copies := source.real.copies) is not None:
        left_out = f"{copies.words()} and left out, see {COPIES}" if len(copies) else "no sample is a copy"
        logger.info(f"--drop-copies: {left_out}")
    if source.holes is not None:
        logger.info(f"--holes: {source.holes.words()}; pictures and metrics compare with complete rows alone")
    if len(source.train) < FEWEST:
        logger.info(f"note: {len(source.train)} training rows are too few to learn from: samples will repeat them")
    plain = () if step else (*find_troubles(plan, t, pace), *find_rare(source.spec, len(source.train)))
    fast = find_fast_times(config.method, config.network)
    for trouble in (*find_biases(config.method, source.spec), *fast, *plain):
        logger.info(f"note: {trouble}")
    if limits.max_steps is not None and limits.max_steps > limits.steps:
        logger.info(
            f"note: --max-steps {limits.max_steps:,} lies beyond the {limits.steps:,} steps of --num-epochs "
            f"{t.num_epochs}, which end the run"
        )
    if t.mixed_precision and pick_precision(True, trainer.device, t.half) is None:
        logger.info(
            f"note: --mixed-precision does nothing here: {trainer.device} is fastest in float32; --half forces a type"
        )
    if (world := context.env.world) > 1:
        logger.info(
            f"{world} processes ({trainer.state.parallel.kind}): batches of {t.batch_size} on each, "
            f"{trainer.loader.global_batch:,} together"
        )
    out, rows = config.output, len(source.real.train)
    if out.eval_every and out.eval_samples > rows:
        logger.info(
            f"note: --eval-samples {out.eval_samples:,} is more than there are training samples; taking {rows:,}"
        )
    if plan.batch < min(32, plan.usual) and not plan.short:
        logger.info(f"note: a batch of {plan.batch} gives noisy gradients; {plan.usual} is planned for such data")
