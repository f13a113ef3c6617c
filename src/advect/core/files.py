"""Atomic writes and folder locks."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from advect.core.errors import UserError

logger = logging.getLogger(__name__)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading, by whatever links; OSError for pipes, sockets and devices, which may never end.

    The file is opened without waiting, and looked at once it is open, so that nothing can take its place.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Content of a regular file, see :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_regular(path: Path, argument: str) -> None:
    """Raise UserError naming the argument for a pipe, socket or device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{argument} {path} is a pipe, socket or device; give a file or folder")


def sync_folder(folder: Path) -> None:
    """Sync renames in ``folder`` to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Sync the content of ``path`` to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Replace ``path`` by the file that ``write`` fills."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` in UTF-8."""
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove leftovers of a killed :func:`atomic_write`."""
    for partial in folder.glob(".*.partial"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def make_folder(path: Path, argument: str) -> Path:
    """Create a folder; UserError naming the argument if it cannot be written to."""
    check_name(path, argument)
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


LONGEST_NAME = 200
"""Bytes of a file's name: file systems take 255, and a file that is not whole yet has a longer one."""


def check_name(path: Path, argument: str) -> None:
    """Raise UserError naming the argument if a file's name is too long for the disk."""
    length = len(os.fsencode(path.name))
    if length > LONGEST_NAME:
        raise UserError(
            f"{argument} {path.name[:20]}... is a name of {length} bytes; give one of up to {LONGEST_NAME}"
        )


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path, argument: str) -> Iterator[None]:
    """Lock ``folder`` against other processes by ``flock`` on its file ``.lock``, which names the last holder.

    The operating system releases the lock when the process ends. Across hosts it works if the file system supports it
    (NFS and Lustre usually do); without flock a message says that nothing is locked. Raises UserError naming
    ``argument`` if another process holds the lock, or the folder cannot be written to.
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
    """Whether the lock was taken; False if locking is unsupported."""
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


def require_folder(data_dir: str | os.PathLike[str] | None, *, holding: str) -> Path:
    """``data_dir`` as a path to an existing folder.

    Args:
        data_dir: user's path; "~" is the home folder.
        holding: expected content, for the message.

    Raises:
        UserError: it is not given, does not exist, or is not a folder.
    """
    folder = require_path(data_dir, holding=holding)
    if not folder.is_dir():
        raise UserError(f"data_dir {str(data_dir)!r} is a file, not a folder; name the folder that holds {holding}")
    return folder


def require_path(data_dir: str | os.PathLike[str] | None, *, holding: str) -> Path:
    """``data_dir`` as an existing file or folder. Raises UserError if not given or missing."""
    if data_dir is None or not str(data_dir):
        raise UserError(f"data_dir is not given; name the folder that holds {holding}")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise UserError(f"data_dir {str(data_dir)!r} does not exist; name the folder that holds {holding}")
    check_regular(path, "data_dir")
    return path
