"""The RUN argument, and --nproc."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from advect.config.flags import without_flag
from advect.core.errors import UserError
from advect.distributed.comm import sync_errors


def split_place(
    words: list[str], command: str, what: str = "run", example: str = "runs/digits"
) -> tuple[Path, list[str]]:
    """Split RUN from the flags; --help needs none."""
    if words and not words[0].startswith("-"):
        return Path(words[0]), words[1:]
    if any(word in ("-h", "--help") for word in words):
        return Path(), words
    raise UserError(f"{command} needs a {what} first, such as: {command} {example}")


def launch_processes(command: str, words: list[str], nproc: int, device: str) -> NoReturn:
    """Run the command in ``nproc`` processes; exit with their code."""
    from advect.distributed.launch import check_nproc, launch

    with sync_errors():
        check_nproc(nproc, device)
    sys.exit(launch([sys.executable, "-m", "advect", command, *without_flag("--nproc", words)], nproc))
