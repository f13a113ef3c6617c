"""The command line: a thin face over the jobs in ``advect.runs``.

A user's mistake prints one sentence and exits with 2; a bug shows its traceback and exits with 1. Heavy
imports wait until a command needs them.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from advect.core.errors import UserError, did_you_mean
from advect.core.group import agree, current
from advect.core.processes import Processes

USAGE = """\
advect: train, sample and measure flow-matching models on your own data

  advect train [PRESET] [flags]     train; no preset means digits, real data that needs no download
  advect sample RUN [flags]         draw samples from a run folder, a checkpoint or a weight file
  advect eval RUN [flags]           measure a run against held-out data, by a protocol that makes numbers comparable
  advect report RUN [flags]         measure a run and write its report.html
  advect reflow RUN [flags]         straighten a trained flow, so that few steps draw as well as many did
  advect ema RUN --length 0.05      make an average of the weights of any length, after advect train --posthoc-ema
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
    """Run one command; ``words`` are those after ``advect``. Raises UserError for a mistake.

    Among several processes, training, sampling and evaluating are shared, and all else is left to the first one.
    """
    words = _without_local_rank(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if words[0] == "--version":
        from advect import __version__

        print(f"advect {__version__}")
        return
    if words[0] not in COMMANDS:
        raise UserError(f"command {words[0]!r} is not known{did_you_mean(words[0], COMMANDS)}")
    me, command = Processes.of_environment(), COMMANDS[words[0]]
    if me.world > 1 and words[0] in SHARED:
        from advect.runs.together import run_together

        run_together(lambda: command(words[1:]))
    elif me.is_first:
        command(words[1:])


def _without_local_rank(words: list[str]) -> list[str]:
    """Take the word away that ``python -m torch.distributed.launch`` puts before all others."""
    for name in ("--local-rank=", "--local_rank="):
        if words and words[0].startswith(name):
            os.environ.setdefault("LOCAL_RANK", words[0].removeprefix(name))
            return words[1:]
    return words


def _train(words: list[str]) -> None:
    from advect.runs.arguments import parse_train
    from advect.runs.configfile import to_yaml

    recognised: list[str] = []
    with agree():
        preset, arguments = parse_train(words, say=recognised.append)
    if arguments.dry_run:
        _say(to_yaml(arguments.settings, preset), end="")
        return
    if arguments.nproc != 1:
        _launch("train", words, arguments.nproc, arguments.settings.training.device)
    from advect.runs.training import train

    for line in recognised:
        _say(line)
    folder, reason = train(
        arguments.settings,
        preset,
        run_dir=arguments.run_dir,
        resume_from=arguments.resume_from,
        resume=arguments.resume,
        say=_say,
    )
    typed = shlex.quote(str(folder))
    if reason != "finished":
        _say(f"stopped by {reason}; to go on, type: advect train --resume-from {typed}{_without_limit(reason)}")
    else:
        _say(f"finished: {folder}")
    _say(f"next: advect sample {typed}   advect report {typed}")
    if reason.startswith("SIG"):
        sys.exit(128 + signal.Signals[reason])


def _launch(command: str, words: list[str], nproc: int, device: str) -> NoReturn:
    """Run the command in ``nproc`` processes, and exit as they do."""
    from advect.runs.arguments import without_flag
    from advect.runs.launch import check_nproc, launch

    with agree():
        check_nproc(nproc, device)
    sys.exit(launch([sys.executable, "-m", "advect", command, *without_flag("--nproc", words)], nproc))


def _without_limit(reason: str) -> str:
    return {"max-steps": " --max-steps None", "max-minutes": " --max-minutes None"}.get(reason, "")


def _sample(words: list[str]) -> None:
    from advect.runs.sample_arguments import parse_sample

    place, flags = _place(words, "advect sample")
    with agree():
        a = parse_sample(flags)
    if a.nproc != 1:
        _launch("sample", words, a.nproc, a.device)
    from advect.runs.sampling import describe_files, sample_run

    files = sample_run(
        place,
        a.draw,
        cond=a.conditions,
        ema=a.use_ema if a.ema_decay is None else a.ema_decay,
        save_individual=a.save_individual,
        output_dir=a.output_dir,
        overwrite=a.overwrite,
        part_size=a.part_size,
        device=a.device,
        progress=sys.stderr.isatty(),
        say=_say,
    )
    for line in describe_files(files, individual=a.save_individual):
        _say(line)


def _report(words: list[str]) -> None:
    from advect.runs.report_arguments import parse_report

    place, flags = _place(words, "advect report")
    a = parse_report(flags)
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


def _reflow(words: list[str]) -> None:
    from advect.runs.reflow_arguments import parse_reflow

    place, flags = _place(words, "advect reflow")
    with agree():
        preset, a = parse_reflow(place if words[0] == str(place) else None, flags)
    if a.nproc != 1:
        _launch("reflow", words, a.nproc, a.settings.training.device)
    from advect.runs.reflow import reflow

    ended = reflow(place, preset, a, say=_say, progress=sys.stderr.isatty())
    typed = shlex.join(["advect", "reflow", *words])
    if ended.reason != "finished":
        _say(f"stopped by {ended.reason}; to go on, type: {typed}")
    for name, folder in ended.flows.items():
        _say(f"{name}: {folder}")
    if ended.report:
        _say(f"report: {ended.report}")
    if ended.reason.startswith("SIG"):
        sys.exit(128 + signal.Signals[ended.reason])


def _eval(words: list[str]) -> None:
    from advect.evaluation import results
    from advect.runs.eval_arguments import parse_compare, parse_eval

    if any(word.partition("=")[0] == "--compare" for word in words):
        with agree():
            c = parse_compare(words)
            lines = results.compare(c.compare, force=c.force)
        _say("\n".join(lines))
        return
    place, flags = _place(words, "advect eval")
    with agree():
        a = parse_eval(flags)
    if a.nproc != 1:
        _launch("eval", words, a.nproc, a.device)
    from advect.runs.evaluating import evaluate

    file, result = evaluate(place, a.request, say=_say, progress=sys.stderr.isatty(), device=a.device)
    _say("\n".join([*results.table(result), *results.flow_lines(result), f"result: {file}"]))


def _ema(words: list[str]) -> None:
    from advect.runs.arguments import parse_words

    place, flags = _place(words, "advect ema")
    from advect.runs.ema import EmaArguments, rebuild

    about = "Average the weights of a run that was trained with --posthoc-ema, over any length of it."
    for made in rebuild(place, parse_words(EmaArguments, flags, prog="advect ema RUN", description=about)):
        _say(f"length {made.length} at step {made.step:,}: {made.file} (profile within {made.error:.2%})")
        typed = shlex.quote(str(made.file))
    _say(f"next: advect sample {typed}")


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


def _say(text: str, end: str = "\n") -> None:
    if current().is_first:
        print(text, end=end, flush=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "sample": _sample,
    "eval": _eval,
    "report": _report,
    "reflow": _reflow,
    "ema": _ema,
    "doctor": _doctor,
    "presets": _presets,
    "data": _data,
}

SHARED = ("train", "sample", "eval", "reflow")
"""Commands that several processes do together."""
