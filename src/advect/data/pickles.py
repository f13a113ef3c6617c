"""Pickles of plain data, read without letting them run anything."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError


class _RefusedError(Exception):
    """The pickle wants more than plain data."""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into the older protocols."""
    if encoding != "latin1":
        raise _RefusedError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


# NumPy's own names for what builds an array differ between its versions, and between them and those in the file.
_RECONSTRUCT, _FROM_BUFFER = np.zeros(1).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise _RefusedError(f"it asks for {module_name}.{global_name}") from None


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds, if that is numbers, text, bytes, lists, tuples, dicts and NumPy arrays and nothing else.

    Text that Python 2 wrote is read as Latin-1. A pickle names functions to call; all but those that build an array
    are refused before they are called.

    Raises:
        UserError: the file cannot be read, is no pickle, or asks for anything else.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except _RefusedError as error:
        raise UserError(
            f"{path} is not a pickle of plain arrays and was refused ({error}); do not trust it, download it again"
        ) from error
    except Exception as error:  # damaged bytes lead the unpickler to nearly any
        raise UserError(f"{path} cannot be read as a pickle ({error}); download it again") from error
