"""Text files of others, plain or with gzip: of limited lines, and unpacked no further than the memory allows."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from advect.core.errors import UserError
from advect.core.files import open_regular
from advect.core.memory import check_memory

LONGEST_LINE = 2**26
"""Most bytes of a line: a table of some million columns."""

_CHECKED = 2**28
"""Unpacked bytes between two looks at the free memory."""


def open_text(path: Path) -> IO[str]:
    """As :func:`open_bytes`, decoded from UTF-8."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


def open_bytes(path: Path) -> io.BufferedReader:
    """A text file for reading, with ``.gz`` unpacked; UserError for a line or a content that is too long.

    Raises OSError for pipes, devices and damaged gzip files.
    """
    file: Any = open_regular(path)
    packed = path.suffix.lower() == ".gz"
    return io.BufferedReader(_Limited(gzip.GzipFile(fileobj=file) if packed else file, path, packed), 2**16)


def write_rows(path: Path, rows: Iterable[Sequence[str]], *, separator: str = ",", quoted: bool = False) -> None:
    """Write CSV whose lines end in "\\n", with every cell quoted if ``quoted``, as :func:`has_returns` asks for."""
    with path.open("w", encoding="utf-8", newline="") as file:
        quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
        csv.writer(file, delimiter=separator, lineterminator="\n", quoting=quoting).writerows(rows)


def has_returns(words: Iterable[object]) -> bool:
    """Whether there is a carriage return, which ends a row too, but is not quoted by Python where "\\n" is the end."""
    return any("\r" in word for word in words if isinstance(word, str))


class _Limited(io.RawIOBase):
    """Bytes of a file, whose lines and unpacked size are watched."""

    def __init__(self, file: Any, path: Path, packed: bool) -> None:
        self._file, self._path, self._packed = file, path, packed
        self._line = self._total = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._line, self._total = 0, 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            content = self._file.read(len(buffer))
        except zlib.error as error:  # within a gzip file; a damaged header or end is an OSError or EOFError already
            raise gzip.BadGzipFile(str(error)) from error
        buffer[: len(content)] = content
        end = content.rfind(b"\n")
        self._line = self._line + len(content) if end < 0 else len(content) - end - 1
        if self._line > LONGEST_LINE:
            raise UserError(f"{self._path} has a line of more than {LONGEST_LINE:,} bytes; it is no table of rows")
        if self._packed and (self._total + len(content)) // _CHECKED > self._total // _CHECKED:
            check_memory(f"{self._path} unpacks to more, and takes", self._total, "give fewer rows")
        self._total += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
