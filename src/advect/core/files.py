"""A folder that one process at a time writes to."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from advect.core.errors import UserError

logger = logging.getLogger(__name__)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of ``path`` survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it onto ``path`` in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8 to ``path`` in one step."""
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove what :func:`atomic_write` leaves in a folder where it is killed."""
    for partial in folder.glob(".*.partial"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def make_folder(path: Path, argument: str) -> Path:
    """Make a folder and see that it can be written to; else a UserError that names the argument."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{argument} {path} cannot be written to ({error.strerror}); choose a folder of your own"
        ) from error
    return path


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path, argument: str) -> Iterator[None]:
    """Lock ``folder`` against other processes within the block, by its file ``.lock``.

    The lock is the operating system's own (flock), which lets go when the process ends, however it does; the file,
    which stays, says who had it last. Across hosts it holds where the file system says so, as NFS and Lustre
    usually do. Where there is no flock, a note says so, and nothing is locked.

    Raises UserError, which names ``argument``, where another process holds it, or the folder cannot be written to.
    """
    handle = _open(folder, argument)
    try:
        if _take(handle, folder, argument):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _open(folder: Path, argument: str) -> int:
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise UserError(
            f"{argument} {folder} cannot be written to ({error.strerror}); choose a folder of your own"
        ) from error


def _take(handle: int, folder: Path, argument: str) -> bool:
    """Whether the lock is ours now; False where there is none to have."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            logger.info(f"note: {folder} cannot be locked ({error.strerror}); see that no other process writes to it")
            return False
    owner = os.pread(handle, 100, 0).decode(errors="replace").strip() or "on an unknown host"
    raise UserError(
        f"{argument} {folder} is in use by process {owner}; wait for it, end it with kill, or name another folder"
    )
