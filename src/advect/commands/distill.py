"""advect distill RUN [flags]: from a trained flow, learn to sample in one to four steps."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from advect.checkpoint.manifest import find_checkpoint
from advect.commands.train import exit_by_signal, train
from advect.config.arguments import data_of, few_steps, parse_config, parse_settings, run_folder
from advect.config.config import Config
from advect.config.flags import asks_help, launch_processes, typed_words, value_of
from advect.config.places import split_place
from advect.config.presets import DEFAULT, get_preset
from advect.config.section import Section
from advect.core.bounds import Processes
from advect.core.errors import UserError
from advect.distributed.comm import broadcast_object, sync_errors
from advect.distributed.context import run_context
from advect.training.guards import STOPPED_EARLY

logger = logging.getLogger(__name__)

SHARED = True

USUAL = "lagrangian"
"""The loss that needs no derivative in the state; see bench/RESULTS.md."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillArguments(Section):
    """The run; training flags default to those of the run that it begins from."""

    settings: Config = field(metadata={"flag": False})
    data: Path | None = None
    """The data of the run, if they have moved."""
    output_dir: Path | None = None
    """Folder of the new run; default RUN/distilled."""
    nproc: Processes = 1
    """Local processes, one a GPU if there are any, as by torchrun --nproc_per_node."""

    usual = frozenset({"data", "output_dir", "nproc"})


def run(words: list[str]) -> None:
    """Run ``advect distill`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect distill", DistillArguments)
    with sync_errors():
        known = len(flags) < len(words) and not (asks_help(flags) and not place.exists())
        preset, a = parse_distill(place if known else None, flags)
    if a.nproc != 1:
        launch_processes("distill", words, a.nproc, a.settings.training.device)
    folder, reason = distill(place, preset, a)
    typed = shlex.quote(str(folder))
    if reason not in ("finished", "max-steps", STOPPED_EARLY):
        logger.info(f"stopped by {reason}; to go on, type: {shlex.join(['advect', 'distill', *words])}")
    logger.info(f"next: advect sample {typed} --num-steps 1   advect report {typed}")
    exit_by_signal(reason)


def parse_distill(run: Path | None, words: list[str]) -> tuple[str, DistillArguments]:
    """Parse the words after ``advect distill RUN``: the run's preset, and arguments; without a run for --help.

    Raises UserError, also for a run that has no velocity to begin with.
    """
    if run is None:
        preset, config = DEFAULT, get_preset(DEFAULT).config
    else:
        preset, config = parse_config(run_folder(run) / "config.yaml")
        where = value_of("--data", typed_words(words))
        config = replace(config, data=data_of(run_folder(run), where))
    method = config.method
    if not method.learns_steps and (method.prediction != "velocity" or method.objective != "flow-matching"):
        raise UserError(
            f"advect distill begins from a flow of velocities, and {run} was trained with --objective "
            f"{method.objective} --prediction {method.prediction}; train one with --objective flow-matching"
        )
    training = config.training.replaced(max_steps=None, max_minutes=None, threads=None)  # measured anew
    config = replace(config, training=training)
    usual = method.objective if method.learns_steps else USUAL
    config = few_steps(config, value_of("--objective", typed_words(words)) or usual)
    a = parse_settings(
        DistillArguments(settings=config),
        words,
        prog="advect distill RUN",
        description="Begin from the weights of a run, and learn steps of any length by --objective (or --loss): "
        "samples then take one to four evaluations (--solver flow-map). A run like any other, in a folder of its own; "
        "ended by anything, it goes on where it was when the command is repeated.",
    )
    if a.settings.network != config.network:
        raise UserError("advect distill goes on from the weights of the run, so its network must stay; leave that out")
    if not a.settings.method.learns_steps:
        raise UserError(
            f"--objective {a.settings.method.objective} learns no steps of any length; take {USUAL} or mean-flow, say"
        )
    if a.settings.training.init_from is not None and a.settings.training.init_from != config.training.init_from:
        raise UserError("--init-from contradicts advect distill, which begins from RUN; leave it out")
    return preset, a


def distill(run: Path, preset: str, a: DistillArguments) -> tuple[Path, str]:
    """Train from the averaged weights of a run into its folder ``distilled`` or another; resumable.

    Returns the folder and the reason of the end.
    """
    folder = (a.output_dir or run_folder(run) / "distilled").absolute()
    with run_context(a.settings.training.device, run_dir=folder) as context, sync_errors():
        place = find_checkpoint(run) if context.env.is_first else run
    place = broadcast_object(place)
    config = replace(a.settings, training=replace(a.settings.training, init_from=place))
    return train(config, preset, run_dir=folder, resume="auto")
