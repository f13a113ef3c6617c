"""A disk that fails at the n-th write of what runs in this process, below one folder.

with FaultyDisk(tmp_path, errno.ENOSPC, nth=3) as disk:      # nth=0: count alone
    advect("sample run")                                     # raises UserError, or the layer under it was not asked
disk.writes                                                  # how many writes there were: the next nth to try

A write is: a file opened for writing, a rename, a folder made, a file synced, and tensors written by safetensors,
whose file then is half there. From the n-th on all fail, as on a disk that stays full, or with ``once`` that alone.
Python's own audit events carry it, so that no code under test is replaced but ``os.fsync`` and safetensors' writer.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS)

_active: list[FaultyDisk] = []


class FaultyDisk:
    """Context in which the ``nth`` write below ``folder`` fails with ``number``; see the module."""

    def __init__(self, folder: Path, number: int = errno.ENOSPC, nth: int = 0, *, once: bool = False) -> None:
        self.folder, self.number, self.nth, self.once = str(folder.resolve()), number, nth, once
        self.writes = 0
        self.log: list[str] = []

    def __enter__(self) -> FaultyDisk:
        _install()
        _active.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _active.remove(self)

    def write(self, what: str, path: str) -> None:
        """Count a write; raise the error if it is due."""
        if not os.path.abspath(path).startswith(self.folder + os.sep):
            return
        self.writes += 1
        self.log.append(f"{what} {os.path.relpath(path, self.folder)}")
        if self.nth and (self.writes == self.nth or (self.writes > self.nth and not self.once)):
            raise OSError(self.number, os.strerror(self.number), *([] if what == "sync" else [path]))


def _write(what: str, path: Any) -> None:
    for disk in tuple(_active):
        disk.write(what, os.fsdecode(path))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _write("open", path)
    elif event == "os.rename":
        _write("rename", arguments[1])
    elif event == "os.mkdir":
        _write("mkdir", arguments[0])


_installed = False


def _install() -> None:
    """Hook Python once; the hook asks what is active, as audit hooks stay for ever."""
    global _installed
    if _installed:
        return
    _installed = True
    sys.addaudithook(_audit)
    fsync, serialize = os.fsync, safetensors.torch.serialize_file

    def syncing(handle: Any) -> None:
        if _active:
            number = handle if isinstance(handle, int) else handle.fileno()
            _write("sync", os.readlink(f"/proc/self/fd/{number}"))
        fsync(handle)

    def serializing(tensors: Any, path: Any, metadata: Any = None) -> None:
        try:
            if _active:
                _write("tensors", path)
        except OSError as error:  # as the library tells it, with part of the file on the disk
            Path(path).touch()
            raise SafetensorError(
                f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            ) from None
        serialize(tensors, path, metadata)

    os.fsync, safetensors.torch.serialize_file = syncing, serializing
