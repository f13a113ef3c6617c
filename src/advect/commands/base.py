"""What each command of the command line does: it parses words, does its job and tells the result.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

from advect.core.errors import UserError, did_you_mean
from advect.distributed.comm import current, sync_errors


def train(words: list[str]) -> None:
    from advect.config.arguments import parse_train
    from advect.config.yaml_file import to_yaml

    recognised: list[str] = []
    with sync_errors():
        preset, arguments = parse_train(words, say=recognised.append)
    if arguments.dry_run:
        _say(to_yaml(arguments.settings, preset), end="")
        return
    if arguments.nproc != 1:
        _launch("train", words, arguments.nproc, arguments.settings.training.device)
    from advect.commands.train import train as job

    for line in recognised:
        _say(line)
    folder, reason = job(
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
    from advect.config.arguments import without_flag
    from advect.distributed.launch import check_nproc, launch

    with sync_errors():
        check_nproc(nproc, device)
    sys.exit(launch([sys.executable, "-m", "advect", command, *without_flag("--nproc", words)], nproc))


def _without_limit(reason: str) -> str:
    return {"max-steps": " --max-steps None", "max-minutes": " --max-minutes None"}.get(reason, "")


def sample(words: list[str]) -> None:
    from advect.commands.sample import parse_sample

    place, flags = _place(words, "advect sample")
    with sync_errors():
        a = parse_sample(flags)
    if a.nproc != 1:
        _launch("sample", words, a.nproc, a.device)
    from advect.model.sampling import describe_files, sample_run

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


def report(words: list[str]) -> None:
    from advect.commands.report import parse_report

    place, flags = _place(words, "advect report")
    a = parse_report(flags)
    from advect.commands.report import report as job
    from advect.commands.report import summary

    page, results = job(
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


def reflow(words: list[str]) -> None:
    from advect.commands.reflow import parse_reflow

    place, flags = _place(words, "advect reflow")
    with sync_errors():
        preset, a = parse_reflow(place if words[0] == str(place) else None, flags)
    if a.nproc != 1:
        _launch("reflow", words, a.nproc, a.settings.training.device)
    from advect.commands.reflow import reflow as job

    ended = job(place, preset, a, say=_say, progress=sys.stderr.isatty())
    typed = shlex.join(["advect", "reflow", *words])
    if ended.reason != "finished":
        _say(f"stopped by {ended.reason}; to go on, type: {typed}")
    for name, folder in ended.flows.items():
        _say(f"{name}: {folder}")
    if ended.report:
        _say(f"report: {ended.report}")
    if ended.reason.startswith("SIG"):
        sys.exit(128 + signal.Signals[ended.reason])


def evaluate(words: list[str]) -> None:
    from advect.commands.evaluate import parse_compare, parse_eval
    from advect.evaluation import results

    if any(word.partition("=")[0] == "--compare" for word in words):
        with sync_errors():
            c = parse_compare(words)
            lines = results.compare(c.compare, force=c.force)
        _say("\n".join(lines))
        return
    place, flags = _place(words, "advect eval")
    with sync_errors():
        a = parse_eval(flags)
    if a.nproc != 1:
        _launch("eval", words, a.nproc, a.device)
    from advect.commands.evaluate import evaluate as job

    file, result = job(place, a.request, say=_say, progress=sys.stderr.isatty(), device=a.device)
    _say("\n".join([*results.table(result), *results.flow_lines(result), f"result: {file}"]))


def ema(words: list[str]) -> None:
    from advect.config.arguments import parse_words

    place, flags = _place(words, "advect ema")
    from advect.commands.ema import EmaArguments, rebuild

    about = "Average the weights of a run that was trained with --posthoc-ema, over any length of it."
    for made in rebuild(place, parse_words(EmaArguments, flags, prog="advect ema RUN", description=about)):
        _say(f"length {made.length} at step {made.step:,}: {made.file} (profile within {made.error:.2%})")
        typed = shlex.quote(str(made.file))
    _say(f"next: advect sample {typed}")


def doctor(words: list[str]) -> None:
    from advect.commands.doctor import doctor as job

    text, healthy = job(words)
    _say(text)
    if not healthy:
        sys.exit(1)


def presets(words: list[str]) -> None:
    if words and words[0] not in ("-h", "--help"):
        raise UserError(f"advect presets takes no arguments, got {words[0]!r}")
    from advect.config.presets import PRESETS

    for preset in PRESETS.values():
        print(f"{preset.name:<15} {preset.about}")
    print("\nadvect train PRESET --dry-run   prints its whole configuration")


def data(words: list[str]) -> None:
    from advect.config.arguments import parse_words

    jobs = ("pack", "verify")
    if not words or words[0] in ("-h", "--help"):
        raise UserError(f"advect data needs one of {', '.join(jobs)}, such as: advect data pack faces")
    if words[0] not in jobs:
        raise UserError(f"advect data {words[0]} is not known{did_you_mean(words[0], jobs)}")
    command = f"advect data {words[0]}"
    place, flags = _place(words[1:], command, "PATH", "faces")
    from advect.commands.data import PackArguments, pack_images, verify_pack

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
