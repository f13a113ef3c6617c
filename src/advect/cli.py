"""The command line: a thin face over the commands in ``advect.commands``.

A user's mistake prints one sentence and exits with 2; a bug shows its traceback and exits with 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from advect.commands import base as commands
from advect.core.errors import UserError, did_you_mean
from advect.distributed.env import DistEnv

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
    me, command = DistEnv.of_environment(), COMMANDS[words[0]]
    if me.world > 1 and words[0] in SHARED:
        from advect.distributed.launch import run_shared

        run_shared(lambda: command(words[1:]))
    elif me.is_first:
        command(words[1:])


def _without_local_rank(words: list[str]) -> list[str]:
    """Take the word away that ``python -m torch.distributed.launch`` puts before all others."""
    for name in ("--local-rank=", "--local_rank="):
        if words and words[0].startswith(name):
            os.environ.setdefault("LOCAL_RANK", words[0].removeprefix(name))
            return words[1:]
    return words


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": commands.train,
    "sample": commands.sample,
    "eval": commands.evaluate,
    "report": commands.report,
    "reflow": commands.reflow,
    "ema": commands.ema,
    "doctor": commands.doctor,
    "presets": commands.presets,
    "data": commands.data,
}

SHARED = ("train", "sample", "eval", "reflow")
"""Commands that several processes do together."""
