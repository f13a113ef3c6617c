"""Local files, and remote ones (``s3://``, ``gs://``, ``memory://``, ...) through fsspec."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write, make_folder, open_regular

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_braces(pattern: str) -> list[str]:
    """Expand ``a-{008..010}.tar`` to ``a-008.tar``, ``a-009.tar``, ``a-010.tar``.

    Raises:
        UserError: a range runs backwards.
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    if int(first) > int(last):
        raise UserError(f"{pattern!r} counts backwards from {first} to {last}; write {{{last}..{first}}}")
    names = (f"{pattern[: found.start()]}{i:0{len(first)}}" for i in range(int(first), int(last) + 1))
    return [done for name in names for done in expand_braces(name + pattern[found.end() :])]


def is_remote(address: str) -> bool:
    """Whether an address needs fsspec."""
    return "://" in address or "::" in address


def list_files(address: str | os.PathLike[str] | Sequence[str], suffix: str) -> list[str]:
    """Files of addresses, sorted within each: a file, a folder (files with ``suffix``), braces, globs.

    Raises:
        UserError: there are none.
    """
    addresses = [os.fspath(address)] if isinstance(address, str | os.PathLike) else list(address)
    files = []
    for pattern in (name for given in addresses for name in expand_braces(given)):
        found = _list_remote(pattern, suffix) if is_remote(pattern) else _list_local(pattern, suffix)
        if not found:
            raise UserError(f"there is no {suffix} file at {pattern!r}; name a file, a folder, or a pattern")
        files += found
    return files


def _list_local(pattern: str, suffix: str) -> list[str]:
    if Path(pattern).is_dir():
        return sorted(str(path) for path in Path(pattern).iterdir() if path.name.endswith(suffix) and path.is_file())
    return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern] * Path(pattern).is_file()


def _list_remote(pattern: str, suffix: str) -> list[str]:
    with _explained(pattern):
        system, path = optional_import("fsspec", "remote").core.url_to_fs(pattern)
        if system.isdir(path):
            found = [name for name in system.ls(path, detail=False) if name.endswith(suffix)]
        else:
            found = system.glob(path) if glob.has_magic(path) else [path] * system.isfile(path)
        return sorted(system.unstrip_protocol(name) for name in found)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn an error of a file, or of any kind from a remote file system, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{address} cannot be opened ({error.strerror or error}); see that it is there") from error
    except Exception as error:  # each file system raises its own
        if not is_remote(address):
            raise
        raise UserError(f"{address} cannot be opened ({' '.join(str(error).split())}); see the address") from error


class File:
    """File at an address with thread-safe random access.

    Args:
        address: path, or URL for fsspec.
        cache_dir: folder for a full copy of a remote file; None reads ranges remotely.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, address: str, *, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.address, self._system, self._path = address, None, address
        with _explained(address):
            if is_remote(address):
                self._system, self._path = optional_import("fsspec", "remote").core.url_to_fs(address)
                if cache_dir is not None:
                    self._copy(Path(cache_dir))
            self._local = None if self._system is not None else open_regular(self._path)
            self.size = int(self._system.size(self._path) if self._system else os.fstat(self._fileno()).st_size)

    def _fileno(self) -> int:
        assert self._local is not None
        return self._local.fileno()

    def _copy(self, folder: Path) -> None:
        system, path = self._system, self._path
        assert system is not None
        key = hashlib.sha256(f"{self.address}\0{system.size(path)}".encode()).hexdigest()[:24]
        copy = make_folder(folder, "cache_dir") / f"{key}-{path.rsplit('/', 1)[-1]}"
        if not copy.exists():
            atomic_write(copy, lambda partial: system.get_file(path, str(partial)))
        self._system, self._path = None, str(copy)

    def read(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes from ``start``. Raises OSError or ValueError if there are fewer."""
        if self._system is not None:
            content = self._system.cat_file(self._path, start=start, end=start + count)
        else:
            content = os.pread(self._fileno(), count, start)
        if len(content) < count:
            raise ValueError(f"the file ends {count - len(content)} bytes too early")
        return content

    def open(self) -> BinaryIO:
        """Stream with its own position."""
        return cast(BinaryIO, self._system.open(self._path, "rb") if self._system else open_regular(self._path))
