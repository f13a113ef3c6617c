"""Opening .h5ad files that others made."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from advect.core.errors import UserError

SECONDS = 30
"""Longest that a look at the groups and attributes of a file may take; a sound one takes a fraction of a second."""

_LOOK = """
import sys, h5py
def look(name, item):
    for key in item.attrs:
        item.attrs[key]
    if isinstance(item, h5py.Dataset) and item.shape:
        item[:1]
with h5py.File(sys.argv[1]) as file:
    look("", file)
    file.visititems(look)
"""


def open_h5ad(path: Path) -> Any:
    """The file as an ``h5py.File``, for reading.

    The HDF5 library goes round for ever on some damaged files, where nothing can interrupt it: another process looks
    first, once for each state of the file. Raises UserError if that does not end, and what h5py raises.
    """
    import h5py

    facts = os.stat(path)
    if not _ends(os.path.abspath(path), facts.st_size, facts.st_mtime_ns):
        raise UserError(
            f"{path} is a damaged .h5ad file: the HDF5 library came to no end in it within {SECONDS} s; write it again"
        )
    return h5py.File(path)


@lru_cache(maxsize=256)
def _ends(path: str, size: int, mtime: int) -> bool:
    """Whether a look at the file ends, well or badly; size and time tell its states apart."""
    words = [sys.executable, "-I", "-c", _LOOK, path]
    try:
        subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return True
