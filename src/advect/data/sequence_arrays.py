"""Sequences from arrays, in memory, in .npy files and in .npz archives."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.data.table_columns import Categories, Column, Number
from advect.data.table_scaling import StandardScaling


@dataclass(frozen=True)
class Ragged:
    """Sequences (L_i, C) float64, the names of their C channels, and what each sequence is besides.

    ``conditions`` holds, for each name, the column and its values (N,) in table units, NaN where missing.
    """

    steps: list[np.ndarray]
    channels: tuple[str, ...]
    conditions: dict[str, tuple[Column, np.ndarray]]


def read_arrays(data: Any, lengths: Any, conditions: Mapping[str, Any] | Sequence[str]) -> Ragged:
    """Sequences from arrays.

    Args:
        data: (N, L, C), or a list of (L_i, C), or the path of a ``.npy`` or ``.npz`` file. An archive has ``values``
            and, where lengths differ, ``lengths``; one array alone may have any name.
        lengths: (N,) whole numbers, the real steps of each: the first so many of (N, L, C), or, of values (S, C) that
            follow one another, the next so many. None where all are real.
        conditions: labels (N,), a text, a whole number or a real for each sequence; or names of arrays in an archive.

    Raises:
        UserError: the arrays do not fit together or hold other than finite real numbers; it says what.
    """
    if isinstance(data, str | os.PathLike):
        data, lengths, conditions = _open(Path(data).expanduser(), lengths, conditions)
    elif not isinstance(conditions, Mapping):
        if conditions:
            raise UserError(f"conditions must map names to arrays for arrays, got {list(conditions)}")
        conditions = {}
    if isinstance(data, list | tuple):
        if lengths is not None:
            raise UserError("lengths are for one array; the arrays of a list have their own, so leave lengths out")
        steps = [_array(x, f"sequence {i}") for i, x in enumerate(data)]
    else:
        steps = _cut(_array(data, "the array"), lengths)
    _check(steps)
    channels = tuple(f"value_{i}" for i in range(steps[0].shape[1]))
    return Ragged(steps, channels, {key: _label(key, values, len(steps)) for key, values in conditions.items()})


def _open(file: Path, lengths: Any, conditions: Mapping[str, Any] | Sequence[str]) -> tuple[Any, Any, dict[str, Any]]:
    try:
        content = np.load(file, allow_pickle=False)
        arrays = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"values": content}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a readable .npy or .npz file ({error}); check it or write it again") from error
    if len(arrays) == 1:
        arrays = {"values": next(iter(arrays.values()))}
    if "values" not in arrays:
        raise UserError(f"{file} has the arrays {', '.join(arrays)}, none called 'values'; name the sequences so")
    if lengths is None:
        lengths = arrays.get("lengths")
    if isinstance(conditions, Mapping):
        return arrays["values"], lengths, dict(conditions)
    for name in conditions:
        if name not in arrays:
            raise UserError(f"conditions has {name!r}, which {file} has not{did_you_mean(name, arrays)}")
    return arrays["values"], lengths, {name: arrays[name] for name in conditions}


def _array(x: Any, what: str) -> np.ndarray:
    try:
        x = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
    except ValueError as error:
        raise UserError(f"{what} is ragged; give a list of arrays (L_i, C)") from error
    if x.dtype.kind not in "buif":
        raise UserError(f"{what} must hold real numbers, got dtype {x.dtype}; convert it")
    return x.astype(np.float64)


def _cut(x: np.ndarray, lengths: Any) -> list[np.ndarray]:
    if x.ndim not in (2, 3) or (x.ndim == 2 and lengths is None):
        raise UserError(
            f"sequences must be (N, L, C), got shape {x.shape}; for one channel give x[..., None],"
            " for values (S, C) that follow one another also lengths"
        )
    if lengths is None:
        return list(x)
    lengths = np.asarray(lengths.detach().cpu() if isinstance(lengths, Tensor) else lengths)
    if lengths.dtype.kind not in "ui" or lengths.ndim != 1:
        raise UserError(f"lengths must be (N,) whole numbers, got {lengths.dtype} of shape {lengths.shape}")
    if lengths.min(initial=1) < 1:
        raise UserError(f"lengths must be >= 1, got {lengths.min()} for sequence {lengths.argmin()}; leave it out")
    if x.ndim == 2:
        if lengths.sum() != len(x):
            raise UserError(f"lengths sum to {lengths.sum()}, but values has {len(x)} steps; they must agree")
        return np.split(x, np.cumsum(lengths)[:-1])
    if len(lengths) != len(x) or lengths.max(initial=0) > x.shape[1]:
        raise UserError(
            f"lengths must be {len(x)} numbers of at most {x.shape[1]}, got {len(lengths)} up to"
            f" {lengths.max(initial=0)}; they must fit the array {x.shape}"
        )
    return [row[:length] for row, length in zip(x, lengths, strict=True)]


def _check(steps: list[np.ndarray]) -> None:
    if not steps:
        raise UserError("there are no sequences; give at least one")
    for i, x in enumerate(steps):
        if x.ndim != 2 or not x.size or x.shape[1] != steps[0].shape[1]:
            raise UserError(
                f"sequence {i} has shape {x.shape}, the first {steps[0].shape};"
                " each must be (L, C), L >= 1, of the same C >= 1"
            )
        bad = ~np.isfinite(x)
        if bad.any():
            step, channel = (int(v) for v in np.argwhere(bad)[0])
            raise UserError(
                f"sequence {i} holds {x[step, channel]} at step {step}, channel {channel}; fill it in or leave it out"
            )


def _label(name: str, values: Any, count: int) -> tuple[Column, np.ndarray]:
    """A condition from an array, for which no pandas is needed."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.shape != (count,) or array.dtype.kind not in "buifU":
        raise UserError(
            f"conditions[{name!r}] must be ({count},) texts or numbers, one a sequence,"
            f" got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"conditions[{name!r}] holds NaN or infinite values; leave those sequences out")
        x = array.astype(np.float64)
        scaling = StandardScaling.fit(x)
        return Number(name=name, dtype="float64", scaling=scaling, low=float(x.min()), high=float(x.max())), x
    names, places = np.unique(array, return_inverse=True)
    dtype = "object" if array.dtype.kind == "U" else str(array.dtype)
    return Categories(name=name, dtype=dtype, names=names.tolist()), places.astype(np.float64)
