"""Asynchronous writing of checkpoints, and what its errors mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from advect.checkpoint.manifest import (
    Best,
    Sums,
    checkpoint_step,
    close_checkpoint,
    last_checkpoint,
    open_checkpoint,
    retain,
    sum_files,
    write_best,
    write_checkpoint,
)
from advect.checkpoint.tensor_files import SHARDS, assemble, save_shards, save_tensors
from advect.core.errors import UserError
from advect.core.files import DiskFault, disk_sentence, error_number, sync_file
from advect.distributed.comm import background_objects, current
from advect.distributed.parallel import as_sharded, local


@dataclass
class StateSnapshot:
    """Files of a checkpoint: tensors by file and name, headers and texts by file.

    Of a sharded run ``shards`` are this process's sharded tensors, named with a group prefix such as ``model.``.
    ``gathered`` maps a file to the groups it is assembled from; later groups win.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    shards: dict[str, Tensor] = field(default_factory=dict)
    gathered: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write all but the shards into ``folder``."""
        for name, tensors in self.tensors.items():
            self.write_tensors(folder / name, name, tensors)
        for name, text in self.texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")

    def write_tensors(self, path: Path, name: str, tensors: dict[str, Tensor]) -> None:
        """Write one file, with the header of ``name``."""
        path.parent.mkdir(exist_ok=True)
        save_tensors(path, tensors, self.headers.get(name))


class Stage:
    """Copies of tensors on the CPU; those of a GPU reuse pinned memory."""

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Copy each tensor, or its local shard as a sharded tensor."""
        return {name: self._copied(tensor, f"{group}.{name}") for name, tensor in tensors.items()}

    def _copied(self, tensor: Tensor, key: str) -> Tensor:
        here = local(tensor.detach())
        if not here.is_cuda:
            return as_sharded(here.clone(memory_format=torch.contiguous_format), tensor)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(here.shape, dtype=here.dtype, pin_memory=True)
        return as_sharded(self._pinned[key].copy_(here, non_blocking=True), tensor)

    def finish(self) -> None:
        """Wait for the copies from a GPU."""
        if self._pinned:
            torch.cuda.synchronize()


T = TypeVar("T")


class CheckpointWriter:
    """Write checkpoints into ``folder``, one at a time, and remove old ones as :func:`retain` does.

    The first process writes whole states, every process its shards. With ``background`` a thread writes, and the next
    write waits for it. Errors are stored in ``trouble`` and raised by :meth:`wait`; earlier checkpoints stay intact.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_every: int = 0,
        keep_epochs: bool = False,
        background: bool = True,
    ) -> None:
        self.folder, self._kept = folder, (keep_last, keep_every, keep_epochs)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="advect-checkpoint") if background else None
        self._pending: list[Future[None]] = []
        self.trouble: UserError | None = None

    def write(self, step: int, contents: StateSnapshot, epoch: int | None = None) -> None:
        """Write the checkpoint of ``step``, the end of ``epoch`` if given. Raises UserError if the previous write
        failed.
        """
        self.wait()
        self._do(self._write, step, contents, epoch)

    def mark(self, best: Best) -> None:
        """Point ``best`` to this checkpoint after pending writes, and retain it. Call on all processes."""
        self._do(self._mark, best)

    def _do(self, work: Callable[..., None], *arguments: object) -> None:
        if self._pool is None:
            work(*arguments)
            self.wait()
        else:
            self._pending.append(self._pool.submit(work, *arguments))

    def wait(self) -> None:
        """Wait for pending writes. Raises UserError if one failed."""
        while self._pending:
            self._pending.pop(0).result()
        if self.trouble is not None:
            raise self.trouble

    def close(self) -> None:
        """Stop the thread after its work."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _write(self, step: int, contents: StateSnapshot, epoch: int | None) -> None:
        try:
            with explain_disk_error(self.folder, step):
                if contents.shards:
                    _write_sharded(self.folder, step, contents, epoch)
                elif current().is_first:
                    write_checkpoint(self.folder, step, contents.write, epoch)
                if current().is_first:
                    retain(self.folder, *self._kept)
        except UserError as error:
            self.trouble = error

    def _mark(self, best: Best) -> None:
        if self.trouble is not None or not current().is_first:
            return
        try:
            with explain_disk_error(self.folder, checkpoint_step(Path(best.name))):
                write_best(self.folder, best)
                retain(self.folder, *self._kept)
        except UserError as error:
            self.trouble = error


def _write_sharded(folder: Path, step: int, contents: StateSnapshot, epoch: int | None) -> None:
    """Write a checkpoint from every process's shards; collective."""
    first = current().is_first
    partial = Path(_together(lambda: str(open_checkpoint(folder, step)) if first else "")[0])
    shards = partial / SHARDS
    try:
        _together(lambda: shards.mkdir(parents=True) if first else None)
        sums = _together(lambda: _summed(partial, save_shards(shards, contents.shards)))
        _together(lambda: _finish(partial, folder, step, contents, sums, epoch) if first else None)
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)


def _summed(partial: Path, files: list[Path]) -> Sums:
    for file in files:
        sync_file(file)
    return sum_files(partial, files)


def _finish(
    partial: Path, folder: Path, step: int, contents: StateSnapshot, sums: list[Sums], epoch: int | None
) -> None:
    """Write the files that are not sharded, and complete the checkpoint."""
    known = {name: facts for part in sums for name, facts in part.items()}
    for name, groups in contents.gathered.items():
        contents.write_tensors(partial / name, name, assemble(partial / SHARDS, groups))
    contents.write(partial)
    close_checkpoint(partial, folder, step, known, epoch)


def _together(work: Callable[[], T]) -> list[T]:
    """Run ``work`` on each process and return all results; an error of one is raised by all."""
    result: T | None = None
    failure: tuple[int | None, str] | None = None
    cause: Exception | None = None
    try:
        result = work()
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error
        failure = error_number(error), str(error)
    outcomes = background_objects((result, failure))
    for _, trouble in outcomes:
        if trouble is not None:
            number, text = trouble
            raise (OSError(text) if number is None else OSError(number, os.strerror(number))) from cause
    return [value for value, _ in outcomes]  # type: ignore[misc]


@contextmanager
def explain_disk_error(folder: Path, step: int, *, what: str = "checkpoint") -> Iterator[None]:
    """Turn a failed write of a checkpoint into a UserError naming the last complete one; of ``what`` else, naming
    none.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        fault = DiskFault.of(error) or DiskFault(str(error), "see that the folder can be written to")
        fix, last = fault.fix, "" if what != "checkpoint" else f"{last_checkpoint(folder)}; "
        fix += ", or lower --keep-last" if last and fault.fix == "free some space" else ""
        raise UserError(
            f"the {what} of step {step:,} could not be written to {folder}: {fault.why}; {last}{fix}, and go on with "
            f"--resume-from {folder.parent}"
        ) from error


@contextmanager
def explain_run_error(run: Path) -> Iterator[None]:
    """Turn errors of the file system during the training in ``run`` into a UserError naming the last checkpoint."""
    try:
        yield
    except OSError as error:
        if DiskFault.of(error) is None:
            raise
        left, then = last_checkpoint(run / "checkpoints"), f"go on with --run-dir {run} --resume auto"
        raise UserError(disk_sentence(error, then, left=left)) from error
