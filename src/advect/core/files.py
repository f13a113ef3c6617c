"""Atomic writes, folder locks, and what a failed write means."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from advect.core.errors import UserError

logger = logging.getLogger(__name__)


_IRREGULAR = "it is a pipe, socket or device, not a file"


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
            raise OSError(errno.EINVAL, _IRREGULAR, str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Content of a regular file, see :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def digest(path: Path) -> str:
    """SHA-256, in hexadecimal digits, of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular(path: Path) -> Path:
    """The path of a regular file, for a library that opens it: OSError as of :func:`open_regular`."""
    open_regular(path).close()
    return path


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
    """Replace ``path`` by the file that ``write`` fills; an OSError names ``path``."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path, partial):
            write(partial)
            sync_file(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    with naming(path):
        sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` in UTF-8."""
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


_PARTIAL = re.compile(r"\..*\.(\d+)\.partial")


def is_partial(path: Path) -> bool:
    """Whether a path is what a killed :func:`atomic_write` left; False while its process lives, on this host."""
    found = _PARTIAL.fullmatch(path.name)
    return found is not None and not _lives(int(found[1]))


def remove_partial(folder: Path, *, own: bool = True) -> None:
    """Remove leftovers of a killed :func:`atomic_write` in ``folder`` and the folders in it, not the files that a
    living process writes; nor, without ``own``, another thread of this one.
    """
    for partial in (*folder.glob(".*.partial"), *folder.glob("[!.]*/.*.partial")):
        if partial.is_file() and is_partial(partial) and (own or f".{os.getpid()}." not in partial.name):
            partial.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether another process of this host has that number; False for this process, and where it cannot be told."""
    if pid == os.getpid() or pid <= 0 or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class DiskFault(NamedTuple):
    """Why a file could not be written or read, and what helps: "the disk is full", "free some space"."""

    why: str
    fix: str
    writing: bool = False
    """Whether only a write fails so."""

    @staticmethod
    def of(error: Exception) -> DiskFault | None:
        """Fault of an error; None if it is none of the file system."""
        number = error_number(error)
        if number is None or isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
            return None
        if number == errno.EINVAL and getattr(error, "strerror", None) == _IRREGULAR:
            return DiskFault(_IRREGULAR, "move it away")
        return _FAULTS.get(number, DiskFault(os.strerror(number), "see that it can be read and written"))


_FULL, _PLACE = "free some space", "name another place"
_FAULTS = {
    errno.ENOSPC: DiskFault("the disk is full", _FULL, True),
    getattr(errno, "EDQUOT", errno.ENOSPC): DiskFault("the quota of the disk is used up", _FULL, True),
    errno.EFBIG: DiskFault("files may not become that large here (see ulimit -f)", "raise the limit", True),
    errno.EROFS: DiskFault("the disk is read-only", _PLACE, True),
    errno.EIO: DiskFault("the disk reports an error (EIO)", "see that it is sound"),
    errno.EACCES: DiskFault("permission is denied", "see to its permissions"),
    errno.EPERM: DiskFault("permission is denied", "see to its permissions"),
    errno.ENOENT: DiskFault("it is not there, and may have been removed by another process", "see that none does"),
    errno.EISDIR: DiskFault("a folder is in the place of the file", "move that away"),
    errno.ENOTDIR: DiskFault("a file is in the place of a folder", "move that away"),
    errno.ENAMETOOLONG: DiskFault("the name is too long", "take a shorter one"),
}
_FAULTS[errno.ENOSPC] = DiskFault("the disk is full", _FULL, True)  # also where there is no EDQUOT
_NUMBER = re.compile(r"(?:os error|errno =|\[errno) (\d+)", re.IGNORECASE)


def error_number(error: Exception) -> int | None:
    """``errno`` of an error, also where safetensors, HDF5, Arrow or PyTorch give it in words."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    if found := _NUMBER.search(str(error)):
        return int(found[1])
    return errno.ENOSPC if "No space left on device" in str(error) else None


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Context in which errors of the file system name ``path`` in place of no file, or of ``partial``."""
    try:
        yield
    except OSError as error:
        if error.errno is None and (number := error_number(error)) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        if error.filename in (None, partial, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def explain_disk_errors(then: str = "repeat the command") -> Iterator[None]:
    """Turn an error of the file system into a UserError: the file, why, what helps, and what to do ``then``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if DiskFault.of(error) is None:
            raise
        raise UserError(disk_sentence(error, then)) from error


def disk_sentence(error: Exception, then: str, *, file: Path | None = None, left: str = "") -> str:
    """The sentence of :func:`explain_disk_errors`, on ``file`` if given, and with what is ``left``."""
    fault = DiskFault.of(error) or DiskFault(str(error), "mend that")
    named = getattr(error, "filename", None) if file is None else file
    what = "a file" if named is None else os.fsdecode(named) if isinstance(named, str | bytes) else str(named)
    verb = "could not be written" if fault.writing or file is not None else "could not be read or written"
    return f"{what} {verb}: {'; '.join(filter(None, (fault.why, left, fault.fix)))}, and {then}"


def make_folder(path: Path, argument: str) -> Path:
    """Create a folder; UserError naming the argument if it cannot be written to."""
    check_name(path, argument)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, argument, error) from error
    return path


def _unwritable(folder: Path, argument: str, error: OSError) -> UserError:
    fault = DiskFault.of(error)
    here = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG)
    fix = fault.fix if fault is not None and error.errno in here else "choose a folder of your own"
    return UserError(f"{argument} {folder} cannot be written to ({error.strerror}); {fix}")


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
def claim_folder(folder: Path, argument: str, name: str = LOCK) -> Iterator[Path]:
    """Create ``folder`` and lock it, see :func:`lock_folder`; removed again on failure if it is new and empty.

    What killed writers have left in it is removed.
    """
    new = not folder.exists()
    try:
        make_folder(folder, argument)
        with lock_folder(folder, argument, name):
            remove_partial(folder, own=False)
            yield folder
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def lock_folder(folder: Path, argument: str, name: str = LOCK) -> Iterator[None]:
    """Lock ``folder`` against other processes by ``flock`` on its file ``name``, which names the holder.

    The operating system releases the lock when the process ends. Across hosts it works if the file system supports it
    (NFS and Lustre usually do); without flock a message says that nothing is locked. Raises UserError naming
    ``argument`` if another process holds the lock, or the folder cannot be written to.
    """
    handle, taken = _locked(folder, argument, name)
    try:
        yield
    finally:
        if taken:
            with suppress(OSError):
                (folder / name).unlink()  # while it is held: who opened it meanwhile sees that it is gone
        os.close(handle)


def _locked(folder: Path, argument: str, name: str) -> tuple[int, bool]:
    """Handle of the lock's file, and whether it is locked."""
    while True:
        handle = _open(folder, argument, name)
        try:
            taken = _take(handle, folder, argument)
            if not taken or _is_file(handle, folder / name):
                if taken:
                    _sign(handle)
                return handle, taken
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has removed it


def _is_file(handle: int, path: Path) -> bool:
    """Whether an open file is still that of a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    with suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _open(folder: Path, argument: str, name: str) -> int:
    try:
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise _unwritable(folder, argument, error) from error


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
