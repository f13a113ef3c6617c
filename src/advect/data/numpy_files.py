"""NumPy files of others, whose headers are compared with the bytes behind them before an array is made."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from advect.core.errors import UserError
from advect.core.files import atomic_write, open_regular
from advect.core.memory import check_memory

DAMAGED = (OSError, ValueError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""Errors of reading a NumPy file that is damaged or none."""


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that follows in an open ``.npy``. Raises one of ``DAMAGED``."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except MemoryError as error:
        raise ValueError("its header claims more than the memory") from error
    except (tokenize.TokenError, SyntaxError, KeyError, TypeError) as error:  # it is Python text
        raise ValueError(f"its header is damaged: {error}") from error
    return shape, dtype


@contextmanager
def reading_arrays(path: Path) -> Iterator[None]:
    """Context in which the errors of a NumPy file that is damaged or none are UserErrors."""
    try:
        yield
    except UserError:
        raise
    except DAMAGED as error:
        objects = "allow_pickle" in str(error) or "Python objects" in str(error)
        why = "it holds Python objects, not numbers" if objects else str(error)
        raise UserError(f"{path} cannot be read as NumPy's .npy or .npz ({why}); save it again, as numbers") from error


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a ``.npz`` by name; that of a ``.npy`` is called "". Raises UserError."""
    with reading_arrays(path):
        check_arrays(path)
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"": content}
        with content:
            return dict(content)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as :func:`load_arrays` has them, atomically and without pickle."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            if "" in arrays:
                np.save(file, arrays[""], allow_pickle=False)
            else:
                np.savez_compressed(file, allow_pickle=False, **arrays)

    atomic_write(path, write)


def check_arrays(path: Path, *, mapped: bool = False) -> None:
    """Check a ``.npy`` or ``.npz`` before it is loaded; ``mapped``: a ``.npy`` is not read into memory.

    Raises UserError for a header that claims another size than the file has and arrays that exceed the memory, OSError
    and the others of ``DAMAGED`` for what is no such file.
    """
    with open_regular(path) as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            size = _bytes_of(path, file, path.stat().st_size)
            total = 0 if mapped else size
        else:
            file.seek(0)
            total = 0
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        with archive.open(info) as member:
                            total += _bytes_of(path, member, info.file_size, info.filename)
    check_memory(f"{path} holds arrays, which take", total, "give fewer rows, or a .npy file, which is not read whole")


def _bytes_of(path: Path, file: IO[bytes], size: int, name: str = "") -> int:
    """Bytes of an array, from its header. Raises UserError unless they are those of a file of ``size`` bytes."""
    shape, dtype = read_header(file)
    claimed, rest = math.prod(shape) * dtype.itemsize, size - file.tell()
    if not dtype.hasobject and claimed != rest:
        what = f"the array {name.removesuffix('.npy')!r} of {path}" if name else str(path)
        raise UserError(
            f"{what} claims {claimed:,} bytes for its shape {shape}, and the file has {rest:,} for it; save it again"
        )
    return claimed
