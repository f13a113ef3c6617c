"""The command line: a thin face over the jobs in ``advect.runs``.

A user's mistake prints one sentence and exits with 2; a bug shows its traceback and exits with 1. Heavy
imports wait until a command needs them.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advect.core.errors import UserError, did_you_mean

USAGE = """\
advect: train, sample and measure flow-matching models on your own data

  advect train [PRESET] [flags]     train; no preset means digits, real data that needs no download
  advect sample RUN [flags]         draw samples from a run folder, a checkpoint or a weight file
  advect report RUN [flags]         measure a run and write its report.html
  advect doctor [PRESET | RUN | --data PATH]   say what is wrong with the machine, with data or with a run
  advect presets                    list the presets
  advect data pack PATH [flags]     decode and resize images once, for training at the speed of memory
  advect data verify PATH           read every byte of a pack

Start here:

  advect train moons                seconds; then look at runs/moons/samples
  advect train digits               about two minutes on two CPU cores
  advect train --data PATH          images, tables, cells, sequences or arrays of your own
  advect sample runs/digits --cond label=7 --guidance 2
  advect report runs/digits

`advect COMMAND --help` explains every flag.
"""


def main() -> None:
    """Run the command line on ``sys.argv`` and exit."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"advect: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("advect: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def run(words: list[str]) -> None:
    """Run one command; ``words`` are those after ``advect``. Raises UserError for a mistake."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if words[0] == "--version":
        from advect import __version__

        print(f"advect {__version__}")
        return
    if words[0] not in COMMANDS:
        raise UserError(f"command {words[0]!r} is not known{did_you_mean(words[0], COMMANDS)}")
    COMMANDS[words[0]](words[1:])


def _train(words: list[str]) -> None:
    from advect.runs.arguments import parse_train
    from advect.runs.configfile import to_yaml

    preset, arguments = parse_train(words, say=_say if "--dry-run" not in words else None)
    if arguments.dry_run:
        print(to_yaml(arguments.settings, preset), end="")
        return
    from advect.runs.training import train

    folder, reason = train(
        arguments.settings, preset, run_dir=arguments.run_dir, resume_from=arguments.resume_from, say=_say
    )
    typed = shlex.quote(str(folder))
    if reason != "finished":
        _say(f"stopped by {reason}; to go on, type: advect train --resume-from {typed}{_without_limit(reason)}")
    else:
        _say(f"finished: {folder}")
    _say(f"next: advect sample {typed}   advect report {typed}")
    if reason.startswith("SIG"):
        sys.exit(128 + signal.Signals[reason])


def _without_limit(reason: str) -> str:
    return {"max-steps": " --max-steps None", "max-minutes": " --max-minutes None"}.get(reason, "")


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """What one call of ``advect sample`` asks for."""

    num_samples: int = 64
    """How many samples."""
    num_steps: int | None = None
    """Solver steps; by default as many as the run's own sample grids."""

    # Solver; by default that of the run's own sample grids. euler: order 1. midpoint, heun: order 2, two
    # evaluations a step. ab2, dpmpp2m: order 2, one evaluation; dpmpp2m is exact where the data's prediction stands
    # still. rk4: order 4, four evaluations. dopri5: adaptive. euler-maruyama, heun: with --diffusion.
    solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m", "dopri5", "euler-maruyama"] | None = None

    grid: Literal["uniform", "cosine", "edm", "shifted"] | None = None
    """Where the steps lie: evenly; dense at both ends; as EDM's noise levels; more near the noise."""

    # Sample the stochastic equation with this g(t): a number such as 0.5, or a name such as sigma; more of it
    # forgets errors and needs more steps.
    diffusion: str | None = None

    seed: int = 0
    """The same seed gives the same samples."""

    # Conditions as NAME=VALUE, such as label=7. NAME=cycle takes each value in turn, NAME=none samples without;
    # conditions that are not named are drawn as often as in the data.
    cond: tuple[str, ...] = ()

    guidance: float = 1.0
    """Scale of classifier-free guidance: 1 is none, 2 or 3 follows the condition more closely."""
    guidance_interval: tuple[float, float] | None = None
    """Times LO HI between which guidance acts; by default all."""
    use_ema: bool = True
    """Use the averaged weights."""
    save_individual: bool = False
    """Write each image to a file of its own, too."""
    output_dir: Path | None = None
    """Folder for the samples, a picture and their facts; by default RUN/generated/seed-SEED."""
    overwrite: bool = False
    """Replace other samples that are there already."""
    batch_size: int = 256
    """Samples drawn at once."""

    # More samples than this, 10,000 by default, are written in parts of at most this many, which several processes
    # (torchrun) share. A call that has been ended goes on after its whole parts when it is repeated.
    part_size: int | None = None

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""


def _sample(words: list[str]) -> None:
    from advect.runs.arguments import parse_words

    place, flags = _place(words, "advect sample")
    a = parse_words(SampleArguments, flags, prog="advect sample RUN", description="Draw samples from a trained flow.")
    cond = _conditions(a.cond)
    from advect.runs.sampling import Draw, sample_run

    draw = Draw(
        n=a.num_samples,
        steps=a.num_steps,
        solver=a.solver,
        grid=a.grid,
        diffusion=_number_or_name(a.diffusion),
        guidance=a.guidance,
        guidance_interval=a.guidance_interval,
        seed=a.seed,
        batch_size=a.batch_size,
    )
    files = sample_run(
        place,
        draw,
        cond=cond,
        ema=a.use_ema,
        save_individual=a.save_individual,
        output_dir=a.output_dir,
        overwrite=a.overwrite,
        part_size=a.part_size,
        device=a.device,
        progress=sys.stderr.isatty(),
        say=_say,
    )
    for file in files:
        if file.suffix and not file.stem.startswith("sample-"):
            _say(f"{_KINDS[file.suffix]:8} {file}")
    if not files:  # of the processes the first one tells
        return
    parts = [file for file in files if not file.suffix]
    if parts:
        _say(f"parts:   {parts[0].parent / 'part-*'} ({len(parts)})")
    if a.save_individual:
        _say(f"images:  {(parts[0].parent / 'part-*' if parts else files[0].parent) / 'sample-*.png'}")


_KINDS = {
    ".h5ad": "cells:",
    ".parquet": "table:",
    ".csv": "table:",
    ".npz": "arrays:",
    ".png": "picture:",
    ".json": "facts:",
}
"""What a file of samples holds."""


def _number_or_name(word: str | None) -> float | str | None:
    try:
        return None if word is None else float(word)
    except ValueError:
        return word


def _conditions(words: tuple[str, ...]) -> dict[str, str]:
    cond: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"--cond {word} should be NAME=VALUE, such as label=7")
        cond[name] = value
    return cond


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """What one call of ``advect report`` asks for."""

    num_samples: int = 1000
    """Samples for each point of the quality curve, at most as many as the training data."""
    nfes: tuple[int, ...] | None = None
    """Numbers of network evaluations at which quality is measured."""
    seed: int = 0
    """Seed of the samples."""
    measure: bool = True
    """Measure anew; --no-measure makes the page of what is in the run folder."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""


def _report(words: list[str]) -> None:
    from advect.runs.arguments import parse_words

    place, flags = _place(words, "advect report")
    a = parse_words(ReportArguments, flags, prog="advect report RUN", description="Measure a run and write a report.")
    if not a.measure and (a.nfes or a.num_samples != ReportArguments.num_samples):
        raise UserError("--no-measure measures nothing, so --nfes and --num-samples would be ignored; leave them out")
    from advect.runs.reporting import report, summary

    page, results = report(
        place,
        samples=a.num_samples,
        nfes=a.nfes,
        seed=a.seed,
        measure=a.measure,
        device=a.device,
        progress=sys.stderr.isatty(),
    )
    for line in summary(results) if results else []:
        _say(line)
    _say(f"report: {page}")


def _doctor(words: list[str]) -> None:
    from advect.doctor.command import doctor

    text, healthy = doctor(words)
    _say(text)
    if not healthy:
        sys.exit(1)


def _presets(words: list[str]) -> None:
    if words and words[0] not in ("-h", "--help"):
        raise UserError(f"advect presets takes no arguments, got {words[0]!r}")
    from advect.runs.presets import PRESETS

    for preset in PRESETS.values():
        print(f"{preset.name:<15} {preset.about}")
    print("\nadvect train PRESET --dry-run   prints its whole configuration")


def _data(words: list[str]) -> None:
    from advect.runs.arguments import parse_words

    jobs = ("pack", "verify")
    if not words or words[0] in ("-h", "--help"):
        raise UserError(f"advect data needs one of {', '.join(jobs)}, such as: advect data pack faces")
    if words[0] not in jobs:
        raise UserError(f"advect data {words[0]} is not known{did_you_mean(words[0], jobs)}")
    command = f"advect data {words[0]}"
    place, flags = _place(words[1:], command, "PATH", "faces")
    from advect.runs.packing import PackArguments, pack_images, verify_pack

    if words[0] == "verify":
        if flags:
            raise UserError(f"{command} takes a PATH alone, got {flags[0]!r}")
        _say(verify_pack(place))
        return
    about = "Decode and resize images once. Ended by anything, it goes on where it was."
    a = parse_words(PackArguments, flags, prog=f"{command} PATH", description=about)
    _say(f"packed: {pack_images(place, a, progress=sys.stderr.isatty())}")


def _place(words: list[str], command: str, what: str = "run", example: str = "runs/digits") -> tuple[Path, list[str]]:
    """Split the RUN argument from the flags; --help needs none."""
    if words and not words[0].startswith("-"):
        return Path(words[0]), words[1:]
    if any(word in ("-h", "--help") for word in words):
        return Path(), words
    raise UserError(f"{command} needs a {what} first, such as: {command} {example}")


def _say(text: str) -> None:
    print(text, flush=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "sample": _sample,
    "report": _report,
    "doctor": _doctor,
    "presets": _presets,
    "data": _data,
}
