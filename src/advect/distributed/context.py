"""Device, processes, run folder and seed of a command; its console output."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advect.core.errors import UserError, printable
from advect.distributed.comm import current, process_group
from advect.distributed.env import DistEnv

if TYPE_CHECKING:
    import torch

    from advect.core.progress import Progress

LOADED = time.monotonic()
"""When a command began, about: PyTorch, which takes seconds to load, comes later."""


@dataclass(frozen=True)
class RunContext:
    """Device and rank of this process, the run folder if any, and the seed."""

    device: torch.device
    env: DistEnv
    run_dir: Path = Path()
    seed: int = 0


@contextmanager
def run_context(device: str, *, run_dir: Path = Path(), seed: int = 0) -> Iterator[RunContext]:
    """Context with the device and the process group; see :func:`pick_device` and :func:`process_group`."""
    place = pick_device(device)
    with process_group(place) as env:
        yield RunContext(place, env, run_dir, seed)


def pick_device(name: str | torch.device) -> torch.device:
    """Device called ``name``; "auto" is a GPU if available. Each process takes the GPU of its local rank.

    Raises UserError if there is no such device, or not one per process.
    """
    import torch

    if isinstance(name, torch.device):
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = current().device(torch.device(name))
        torch.ones(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here; cpu always can") from error
    if device.type == "cuda" and current().world > 1:
        torch.cuda.set_device(device)
    return device


EVERY_RANK = {"every_rank": True}
"""``extra`` of a log message for all ranks; default: the first only."""


class ConsoleHandler(logging.Handler):
    """Log lines of the first process above tqdm bars: warnings on stderr, the rest on stdout."""

    def filter(self, record: logging.LogRecord) -> bool:
        return (current().is_first or getattr(record, "every_rank", False)) and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        warning = record.levelno >= logging.WARNING
        file = sys.stderr if warning else sys.stdout
        text = printable(self.format(record), lines=bool(record.exc_info))
        tqdm.write(f"warning: {text}" if warning else text, file=file)
        file.flush()


def log_to_console() -> None:
    """Show the package's messages on the terminal; idempotent."""
    logger = logging.getLogger("advect")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())


@contextmanager
def only_warnings() -> Iterator[None]:
    """Context that hides messages below warnings."""
    logger = logging.getLogger("advect")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Context in which Python's warnings, which only libraries give, are messages of level debug.

    Filters stay as they are, and so does everything if Python was asked for warnings (``-W``, PYTHONWARNINGS).
    """
    if sys.warnoptions:
        yield
        return
    logger = logging.getLogger("advect")

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        logger.debug(f"{filename}:{lineno}: {category.__name__}: {message}")

    # Once in a process of our own, before it has threads; ``catch_warnings`` would also replace the filters.
    shown, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = shown


def progress_bar(total: int, title: str, unit: str, *, leave: bool = True) -> Progress:
    """Progress on the first process."""
    from advect.core.progress import Progress

    return Progress(total, title, unit, show=current().is_first, leave=leave)
