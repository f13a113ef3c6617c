"""Messages of the package: loggers under "advect", and what the command line does with them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from advect.distributed.comm import current

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY_RANK = {"every_rank": True}
"""``extra`` of a note or warning that any process may show; by default the first one alone does."""


class ConsoleHandler(logging.Handler):
    """Plain lines above tqdm's bars, from the first process of a run: warnings on standard error, notes on output."""

    def filter(self, record: logging.LogRecord) -> bool:
        return (current().is_first or getattr(record, "every_rank", False)) and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        warning = record.levelno >= logging.WARNING
        file = sys.stderr if warning else sys.stdout
        tqdm.write(f"warning: {self.format(record)}" if warning else self.format(record), file=file)
        file.flush()


def log_to_console() -> None:
    """Show the package's messages on the terminal, once."""
    logger = logging.getLogger("advect")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())


@contextmanager
def only_warnings() -> Iterator[None]:
    """Within the block notes are dropped."""
    logger = logging.getLogger("advect")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def progress_bar(total: int, title: str, unit: str) -> tqdm:
    """A bar on the first process, where standard error is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, disable=None if current().is_first else True)
