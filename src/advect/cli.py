"""The command line: finds the commands in ``advect.commands``, one a file, and runs one.

A user's mistake prints one sentence and exits with 2; a bug shows its traceback and exits with 1.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from advect.core.errors import UserError, did_you_mean, printable, shortened
from advect.core.files import explain_disk_errors
from advect.distributed.context import log_to_console, without_library_warnings
from advect.distributed.env import DistEnv

USAGE = """\
advect: train, sample and measure flow-matching models on your own data

Start here:

  advect train moons                seconds; then look at runs/moons/samples
  advect train digits               about two minutes on two CPU cores
  advect train --data PATH          images, tables, cells, sequences or arrays of your own
  advect sample runs/digits --cond label=7 --guidance 2
  advect report runs/digits

Commands:

{commands}

`advect COMMAND --help` explains every flag.
"""


class Command(NamedTuple):
    """A command: the module with its ``run(words)``, how it is typed, and what it does."""

    module: str
    usage: str
    about: str


def find_commands() -> dict[str, Command]:
    """The commands by name, from the first line of each file in ``commands/``: ``advect NAME ...: what it does``."""
    found = {}
    for file in sorted((Path(__file__).parent / "commands").glob("*.py")):
        with file.open(encoding="utf-8") as lines:  # an import would load PyTorch
            usage, _, about = lines.readline().strip('"\n.').partition(": ")
        if usage.startswith("advect "):
            found[usage.split()[1]] = Command(f"advect.commands.{file.stem}", usage, about)
    return found


def main() -> None:
    """Run the command line on ``sys.argv`` and exit."""
    try:
        run(_without_local_rank(sys.argv[1:]), own_process=True)
    except UserError as error:
        print(f"advect: {shortened(printable(str(error)))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("advect: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def run(words: list[str], *, own_process: bool = False) -> None:
    """Run one command; ``words`` are those after ``advect``. Raises UserError for a mistake, and errors of the disk.

    Among several processes, commands that are ``SHARED`` run on all of them, the others on the first one alone.
    In a process of its own a command makes PyTorch faster for all of it, see :func:`tune_process`, and keeps warnings
    of libraries from the terminal.
    """
    log_to_console()
    commands = find_commands()
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {c.usage:<32}  {c.about}" for c in commands.values())), end="")
        return
    if words[0] == "--version":
        from advect import __version__

        print(f"advect {__version__}")
        return
    if words[0] not in commands:
        raise UserError(f"command {words[0]!r} is not known{did_you_mean(words[0], commands)}")
    with without_library_warnings() if own_process else nullcontext():
        _run(commands[words[0]].module, words[1:], own_process=own_process)


def _run(module: str, words: list[str], *, own_process: bool) -> None:
    """Run the command of a module."""
    env, command = DistEnv.from_environment(), importlib.import_module(module)
    if own_process and "torch" in sys.modules:
        from advect.core.device import tune_process

        tune_process()
    with explain_disk_errors():
        if env.world > 1 and getattr(command, "SHARED", False):
            from advect.distributed.launch import run_shared

            run_shared(lambda: command.run(words))
        elif env.is_first:
            command.run(words)


def _without_local_rank(words: list[str]) -> list[str]:
    """Take the word away that ``python -m torch.distributed.launch`` puts before all others."""
    for name in ("--local-rank=", "--local_rank="):
        if words and words[0].startswith(name):
            os.environ.setdefault("LOCAL_RANK", words[0].removeprefix(name))
            return words[1:]
    return words
