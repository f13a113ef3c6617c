"""The job behind ``advect train``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole
from advect.core.platform import tune_process
from advect.data import Source
from advect.objectives import Objective
from advect.runs.build import build_source, pick_device, pick_precision
from advect.runs.card import Card
from advect.runs.config import Config
from advect.runs.configfile import to_yaml
from advect.runs.engine import check_method, new_state, new_trainer
from advect.runs.environment import write_environment
from advect.runs.flow import Flow
from advect.runs.loading import flow_of, read_card
from advect.runs.method import build_objective, noise_facts
from advect.runs.network_config import name_of
from advect.runs.watch import Watch
from advect.training import Hook, LearningRate, Limits, Trainer, find_checkpoint, verify_checkpoint
from advect.training.checkpoint import remove_leftovers
from advect.training.hooks import Checkpoints, MetricsFile, ProgressBar, TensorBoard
from advect.training.state import MODEL

Say = Callable[[str], None]


def train(
    config: Config,
    preset: str,
    *,
    run_dir: Path | None = None,
    resume_from: Path | None = None,
    say: Say = print,
) -> tuple[Path, str]:
    """Train as ``config`` says, into ``run_dir`` (runs/PRESET); return the folder and why the run ended.

    With ``resume_from``, a run folder or checkpoint, the run continues bit for bit, in its own folder unless
    ``run_dir`` names another. Everything is checked before the first file is written. Raises UserError for
    settings that do not fit the data, a run folder in use, and a checkpoint of another network or data.
    """
    tune_process()
    checkpoint = find_checkpoint(resume_from) if resume_from else None
    if checkpoint:
        verify_checkpoint(checkpoint)
        run_dir = run_dir or checkpoint.parent.parent
    run_dir = run_dir or Path("runs") / preset
    _check_folder(run_dir, checkpoint)
    source = build_source(config.data, say)
    card = Card.of(config, preset, source, noise_facts(config.method, source))
    if checkpoint:
        _check_same_run(read_card(checkpoint / MODEL), card, checkpoint, say)
    trainer = _new_trainer(config, source, card, run_dir)
    if checkpoint:
        trainer.state.load(checkpoint)
    source.train.fetch(np.zeros(1, np.int64))  # whoever cannot be read says so before there is a run folder
    make_folder(run_dir, "--run-dir")
    remove_leftovers(run_dir / "checkpoints")
    write_text_whole(run_dir / "config.yaml", to_yaml(config, preset))
    step = trainer.state.progress.step
    write_environment(run_dir, device=trainer.device, fingerprint=source.fingerprint, step=step)
    _announce(config, preset, source, trainer, run_dir, say)
    reason = trainer.run()
    if unreadable := getattr(source, "unreadable", None):
        first, why = next(iter(unreadable.items()))
        images = "1 image" if len(unreadable) == 1 else f"{len(unreadable):,} images"
        say(f"note: {images} could not be read and others took their places, the first {first} ({why})")
    return run_dir, reason


def _check_folder(run_dir: Path, checkpoint: Path | None) -> None:
    if run_dir.is_file():
        raise UserError(f"--run-dir {run_dir} is a file; name a folder")
    own = checkpoint is not None and checkpoint.parent.parent.resolve() == run_dir.resolve()
    if not own and run_dir.is_dir() and any(run_dir.iterdir()):
        resume = f", or continue it with --resume-from {run_dir}" if (run_dir / "checkpoints").is_dir() else ""
        raise UserError(f"--run-dir {run_dir} is not empty; name a new folder with --run-dir{resume}")


def _check_same_run(there: Card, here: Card, checkpoint: Path, say: Say) -> None:
    """Refuse another network or data shape; tell what else differs, for the run is then not the same bit for bit."""
    if there.spec.shape != here.spec.shape or there.spec.conditions.keys() != here.spec.conditions.keys():
        raise UserError(
            f"checkpoint {checkpoint} was trained on data of shape {there.spec.shape} with conditions "
            f"{sorted(there.spec.conditions)}, and these have shape {here.spec.shape} with conditions "
            f"{sorted(here.spec.conditions)}; resume with the data it was trained on"
        )
    differs = _differences(there.config, here.config)
    of_network = [text for section, text in differs if section == "network"]
    if type(there.network) is not type(here.network):
        of_network = [f"it has --network {name_of(there.network)}, this one {name_of(here.network)}"]
    if of_network:
        raise UserError(
            f"checkpoint {checkpoint} has another network: {'; '.join(of_network)}; "
            f"leave out those flags, or train anew with --run-dir"
        )
    free = {"max_steps", "max_minutes", "num_workers", "pair_ahead", "grad_checkpointing", "device"}
    free |= {"data_dir", "cache_dir", "backed", "skip_unreadable"}  # the fingerprint tells whether data differ
    if here.config["training"]["lr_schedule"] == "constant":
        free.add("num_epochs")
    for section, text in differs:
        if section in ("data", "method", "training") and text.split()[0] not in free:
            say(f"note: {text}; the run will not equal one with the old value")
    if there.fingerprint != here.fingerprint:
        say("note: the data have changed since the checkpoint; the run will not equal one on the old data")


def _differences(there: dict, here: dict) -> list[tuple[str, str]]:
    return [
        (section, f"{name} was {there[section].get(name)} there and is {value} here")
        for section, values in here.items()
        for name, value in values.items()
        if name in there.get(section, {})
        and there[section][name] != value  # a flag newer than the run changes nothing
    ]


def _new_trainer(config: Config, source: Source, card: Card, run_dir: Path) -> Trainer:
    """Wire network, objective, data and hooks together; nothing is written until the trainer runs."""
    t, device = config.training, pick_device(config.training.device)
    check_method(config.method, t)
    objective = build_objective(config.method, source.spec, card.noise, card.noise_tensors)
    state = new_state(config.network, t, source.spec, objective, card=card.to_text(), data=card.tensors)
    limits, rate = _plan(config, source)
    hooks = _hooks(config, run_dir, flow_of(card, state.net, device), objective, source)
    return new_trainer(
        t, state, objective, source.train, rate=rate, limits=limits, log_every=config.output.log_every, hooks=hooks
    )


def _hooks(config: Config, run_dir: Path, flow: Flow, objective: Objective, source: Source) -> tuple[Hook, ...]:
    out = config.output
    metrics, board = MetricsFile(run_dir / "metrics.jsonl"), TensorBoard(run_dir / "tensorboard")
    watch = Watch(
        flow,
        objective,
        source.held_out,
        run_dir / "samples",
        every=out.sample_every,
        samples=out.num_samples,
        seed=config.training.seed,
        metrics=metrics,
        board=board,
    )
    checkpoints = Checkpoints(
        run_dir / "checkpoints", every=out.save_every, every_epochs=out.save_epochs, keep=out.keep_last
    )
    return metrics, board, ProgressBar(), checkpoints, watch


def _plan(config: Config, source: Source) -> tuple[Limits, LearningRate]:
    t = config.training
    steps = math.ceil(t.num_epochs * len(source.train) / t.batch_size)
    limits = Limits(steps=steps, max_steps=t.max_steps, max_minutes=t.max_minutes)
    return limits, LearningRate(peak=t.learning_rate, warmup=t.lr_warmup_steps, total=steps, shape=t.lr_schedule)


def _announce(config: Config, preset: str, source: Source, trainer: Trainer, run_dir: Path, say: Say) -> None:
    t, limits, step, net = config.training, trainer.limits, trainer.state.progress.step, trainer.state.net
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
    if t.batch_size < 32:
        say(f"note: a batch of {t.batch_size} gives noisy gradients; 32 or more is usual")
