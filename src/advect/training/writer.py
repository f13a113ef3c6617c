"""Checkpoints written by a thread while training goes on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from advect.core.errors import UserError
from advect.core.files import sync_file
from advect.core.group import background_objects, current
from advect.training.best import Best, write_best
from advect.training.checkpoint import (
    Sums,
    checkpoint_step,
    close_checkpoint,
    open_checkpoint,
    retain,
    sum_files,
    write_checkpoint,
)
from advect.training.contents import Contents
from advect.training.faults import disk_explained, is_full
from advect.training.shards import SHARDS, assemble, save_shards

T = TypeVar("T")


class CheckpointWriter:
    """Writes checkpoints into ``folder``, one at a time, and removes old checkpoints.

    The first process writes those of whole states; all write their own part of sharded ones. ``keep_last`` and
    ``keep_every`` are those of :func:`retain`. With ``background`` a thread writes, and training waits only for the
    write before. What fails is kept in ``trouble``, and raised by :meth:`wait`; the checkpoints before stay as they
    were.
    """

    def __init__(self, folder: Path, *, keep_last: int, keep_every: int = 0, background: bool = True) -> None:
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="advect-checkpoint") if background else None
        self._pending: list[Future[None]] = []
        self.trouble: UserError | None = None

    def write(self, step: int, contents: Contents) -> None:
        """Write the checkpoint of ``step``. Raises UserError where the one before it could not be written."""
        self.wait()
        self._do(self._write, step, contents)

    def mark(self, best: Best) -> None:
        """Once what is being written is whole, have ``best`` name this checkpoint; it stays until another is better.

        All processes call it, with the same.
        """
        self._do(self._mark, best)

    def _do(self, work: Callable[..., None], *arguments: object) -> None:
        if self._pool is None:
            work(*arguments)
            self.wait()
        else:
            self._pending.append(self._pool.submit(work, *arguments))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises UserError where it could not be written."""
        while self._pending:
            self._pending.pop(0).result()
        if self.trouble is not None:
            raise self.trouble

    def close(self) -> None:
        """Let the thread end its work."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _write(self, step: int, contents: Contents) -> None:
        try:
            with disk_explained(self.folder, step):
                if contents.shards:
                    _write_sharded(self.folder, step, contents)
                elif current().is_first:
                    write_checkpoint(self.folder, step, contents.write)
                if current().is_first:
                    retain(self.folder, self.keep_last, self.keep_every)
        except UserError as error:
            self.trouble = error

    def _mark(self, best: Best) -> None:
        if self.trouble is not None or not current().is_first:
            return
        try:
            with disk_explained(self.folder, checkpoint_step(Path(best.name))):
                write_best(self.folder, best)
                retain(self.folder, self.keep_last, self.keep_every)
        except UserError as error:
            self.trouble = error


def _write_sharded(folder: Path, step: int, contents: Contents) -> None:
    """Write a checkpoint to which every process adds its part; all processes call it together."""
    first = current().is_first
    partial = Path(_together(lambda: str(open_checkpoint(folder, step)) if first else "")[0])
    shards = partial / SHARDS
    try:
        _together(lambda: shards.mkdir(parents=True) if first else None)
        sums = _together(lambda: _summed(partial, save_shards(shards, contents.shards)))
        _together(lambda: _finish(partial, folder, step, contents, sums) if first else None)
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)


def _summed(partial: Path, files: list[Path]) -> Sums:
    for file in files:
        sync_file(file)
    return sum_files(partial, files)


def _finish(partial: Path, folder: Path, step: int, contents: Contents, sums: list[Sums]) -> None:
    """Write what is not sharded, and make the folder the checkpoint."""
    known = {name: facts for part in sums for name, facts in part.items()}
    for name, groups in contents.gathered.items():
        contents.write_tensors(partial / name, name, assemble(partial / SHARDS, groups))
    contents.write(partial)
    close_checkpoint(partial, folder, step, known)


def _together(work: Callable[[], T]) -> list[T]:
    """Do each process's work and return all results; where one fails, all raise its error."""
    result: T | None = None
    failure: tuple[int | None, str] | None = None
    own: Exception | None = None
    try:
        result = work()
    except (OSError, SafetensorError, RuntimeError) as error:
        own = error
        full = is_full(error) or "No space left" in str(error)  # as PyTorch's checkpoints tell it
        failure = errno.ENOSPC if full else getattr(error, "errno", None), str(error)
    told = background_objects((result, failure))
    for _, trouble in told:
        if trouble is not None:
            raise OSError(trouble[0] or errno.EIO, os.strerror(trouble[0]) if trouble[0] else trouble[1]) from own
    return [value for value, _ in told]  # type: ignore[misc]
