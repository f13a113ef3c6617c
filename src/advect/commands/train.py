"""The job behind ``advect train``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advect.checkpoint.manifest import explain_full_disk, find_weights, remove_leftovers
from advect.checkpoint.weights import load_weights
from advect.commands.resume import Say, check_folder, check_same_run, lock_run_dir, resolve_checkpoint
from advect.config.build import build_dataset, build_loss, fit_source, pick_device, pick_precision
from advect.config.build_trainer import build_callbacks, check_method, new_state, new_trainer
from advect.config.config import Config
from advect.config.environment import write_environment
from advect.config.yaml_file import to_yaml
from advect.core.device import tune_process
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, make_folder, remove_partial
from advect.data import Dataset
from advect.distributed.comm import broadcast_object, current, process_group, sync_errors
from advect.model.load import flow_of, read_model_metadata, weight_file
from advect.model.metadata import ModelMetadata
from advect.model.pairs import open_pairs
from advect.training import LearningRate, StopCriteria, Trainer
from advect.training.posthoc_ema import SNAPSHOTS, bring
from advect.training.state import MODEL


def train(
    config: Config,
    preset: str,
    *,
    run_dir: Path | None = None,
    resume_from: Path | None = None,
    resume: str = "no",
    say: Say = print,
) -> tuple[Path, str]:
    """Train as ``config`` says, into ``run_dir`` (runs/PRESET); return the folder and why the run ended.

    With ``resume_from``, a run folder or checkpoint, the run continues bit for bit, in its own folder unless
    ``run_dir`` names another. With ``resume`` "auto" it continues from the newest whole checkpoint in ``run_dir``,
    past damaged ones, and begins where there is none. Everything is checked before the first file is written. Raises
    UserError for settings that do not fit the data, a run folder in use, and a checkpoint of another network or data.
    """
    tune_process()
    with process_group(pick_device(config.training.device)) as me:
        say = say if me.is_first else lambda text: None
        with sync_errors():
            begin = (
                resolve_checkpoint(run_dir or Path("runs") / preset, resume_from, resume, say) if me.is_first else None
            )
        begin = broadcast_object(begin)
        run_dir = run_dir or (begin.parent.parent if begin else Path("runs") / preset)
        with explain_full_disk(run_dir):
            return run_dir, _train(config, preset, run_dir, begin, resume == "auto", say)


def _train(config: Config, preset: str, run_dir: Path, checkpoint: Path | None, again: bool, say: Say) -> str:
    with ExitStack() as claims:
        with sync_errors():
            check_folder(run_dir, checkpoint, again)
            if run_dir.is_dir():  # a folder in use is refused before the data are read
                claims.enter_context(lock_run_dir(run_dir, checkpoint, again, say))
            source, noise = _open(config, say)
            card = ModelMetadata.of(config, preset, source, noise)
            if checkpoint:
                check_same_run(read_model_metadata(checkpoint / MODEL), card, checkpoint, say)
            source.train.fetch(np.zeros(1, np.int64))  # whoever cannot be read says so before there is a run folder
            weights = None if checkpoint else _first_weights(config)
        trainer = _new_trainer(config, source, card, run_dir, weights)
        if checkpoint:
            trainer.state.load(checkpoint)
        with sync_errors():
            if current().is_first:
                make_folder(run_dir, "--run-dir")
                claims.close()
                claims.enter_context(lock_run_dir(run_dir, checkpoint, again, say))
                remove_leftovers(run_dir / "checkpoints")
                for folder in (run_dir, run_dir / "samples"):
                    remove_partial(folder)
                if checkpoint and config.training.posthoc_ema:
                    bring(checkpoint.parent.parent / SNAPSHOTS, run_dir / SNAPSHOTS)
                atomic_write_text(run_dir / "config.yaml", to_yaml(config, preset))
                step = trainer.state.progress.step
                write_environment(run_dir, device=trainer.device, fingerprint=source.fingerprint, step=step)
        _announce(config, preset, source, trainer, run_dir, say)
        reason = trainer.run()
    if unreadable := getattr(source, "unreadable", None):
        first, why = next(iter(unreadable.items()))
        images = "1 image" if len(unreadable) == 1 else f"{len(unreadable):,} images"
        say(f"note: {images} could not be read and others took their places, the first {first} ({why})")
    return reason


def _open(config: Config, say: Say) -> tuple[Dataset, dict[str, Any]]:
    """What is trained on, and the facts of the noise it starts from."""
    source, pairs = build_dataset(config.data, say), config.training.pairs
    if (config.method.coupling == "pairs") != (pairs is not None):
        raise UserError("--coupling pairs and --pairs PATH go together; give both, as advect reflow does, or neither")
    if pairs is not None:
        return open_pairs(pairs, source)
    return source, fit_source(config.method, source)


def _first_weights(config: Config) -> dict[str, Tensor] | None:
    """The weights that the network begins with; None for random ones."""
    begin = config.training.init_from
    if begin is None:
        return None
    place = find_weights(begin)
    file = place if place.is_file() else weight_file(place, ema=True)
    if read_model_metadata(file).network != config.network:
        raise UserError(f"--init-from {begin} has another network than this run; train it with --config of that run")
    return load_weights(file)


def _new_trainer(
    config: Config, source: Dataset, card: ModelMetadata, run_dir: Path, weights: Mapping[str, Tensor] | None
) -> Trainer:
    """Wire network, objective, data and hooks together; nothing is written until the trainer runs."""
    t, device = config.training, pick_device(config.training.device)
    check_method(config.method, t)
    objective = build_loss(config.method, source.spec, card.noise, card.source_tensors)
    state = new_state(
        config.network, t, source.spec, objective, weights=weights, card=card.to_text(), data=card.tensors
    )
    limits, rate = _plan(config, source)
    hooks = build_callbacks(config, run_dir, flow_of(card, state.net, device), objective, source)
    return new_trainer(
        t, state, objective, source.train, rate=rate, limits=limits, log_every=config.output.log_every, hooks=hooks
    )


def _plan(config: Config, source: Dataset) -> tuple[StopCriteria, LearningRate]:
    t = config.training
    steps = math.ceil(t.num_epochs * len(source.train) / (t.batch_size * current().world))
    limits = StopCriteria(steps=steps, max_steps=t.max_steps, max_minutes=t.max_minutes)
    return limits, LearningRate(peak=t.learning_rate, warmup=t.lr_warmup_steps, total=steps, shape=t.lr_schedule)


def _announce(config: Config, preset: str, source: Dataset, trainer: Trainer, run_dir: Path, say: Say) -> None:
    t, limits, step, net = config.training, trainer.limits, trainer.state.progress.step, trainer.state.twin
    params = sum(p.numel() for p in net.parameters())
    say(
        f"{preset}: {len(source.train):,} training and {len(source.held_out):,} held-out samples of shape "
        f"{tuple(source.spec.shape)}; {type(net).__name__} with {params:,} parameters on {trainer.device}"
    )
    say(f"{'resuming at step ' + format(step, ',') if step else 'training'} to step {limits.last_step:,} in {run_dir}")
    if limits.max_steps is not None and limits.max_steps > limits.steps:
        say(
            f"note: --max-steps {limits.max_steps:,} lies beyond the {limits.steps:,} steps of --num-epochs "
            f"{t.num_epochs}, which end the run"
        )
    if t.mixed_precision and pick_precision(True, trainer.device, t.half) is None:
        say(f"note: --mixed-precision does nothing here: {trainer.device} is fastest in float32; --half forces a type")
    if (world := current().world) > 1:
        say(
            f"{world} processes ({trainer.state.parallel.kind}): batches of {t.batch_size} on each, "
            f"{trainer.loader.global_batch:,} together"
        )
    out, rows = config.output, len(source.real.train)
    if out.eval_every and out.eval_samples > rows:
        say(f"note: --eval-samples {out.eval_samples:,} is more than there are training samples; taking {rows:,}")
    if trainer.loader.global_batch < 32:
        say(f"note: a batch of {trainer.loader.global_batch} gives noisy gradients; 32 or more is usual")
