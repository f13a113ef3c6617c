"""Sequences from arrays, in memory, in .npy files and in .npz archives."""

from __future__ import annotations

import csv
import gzip
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.data.arrays import array_header
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.files import CSV, PARQUET, read_table
from advect.data.tables.infer_columns import read_condition
from advect.data.tables.scaling import StandardScaling

_IDS = ("sequence_id", "series_id", "trajectory_id", "unique_id", "seq_id", "sequence", "series", "trajectory", "id")
_MORE_IDS = ("patient", "subject", "animal", "track", "individual", "unit")
_ORDERS = ("step", "time", "t", "timestamp", "datetime", "date", "order", "frame")
_ROWS = 1000


def step_columns(path: Path) -> tuple[str, str] | None:
    """The columns that tell a table's sequences apart and order their steps; None where it has one row a sample.

    They are known by usual names, and values of the first must repeat within the first rows.
    """
    try:
        names, rows = _parquet_head(path) if path.name.lower().endswith(PARQUET) else _csv_head(path)
    except (ImportError, OSError, EOFError, ValueError, csv.Error):
        return None  # whoever reads the table says what is wrong with it
    lower = [name.lower() for name in names]
    more = [name for name in lower if name.endswith("_id") or name in _MORE_IDS]
    key = next((lower.index(name) for name in (*_IDS, *more) if name in lower), None)
    order = next((lower.index(name) for name in _ORDERS if name in lower), None)
    if key is None or order is None:
        return None
    keys = [row[key] for row in rows if len(row) > key]
    return (names[key], names[order]) if len(set(keys)) <= len(keys) / 1.5 else None


def is_sequence_array(path: Path) -> bool:
    """Whether a NumPy file is an array (N, L, C), or values with the lengths of sequences beside them."""
    array = array_header(path)
    if array is None or len(array.shape) not in (2, 3):
        return False
    if len(array.shape) == 3 or path.suffix.lower() == ".npy":
        return len(array.shape) == 3
    with zipfile.ZipFile(path) as archive:
        return array.name == "values" and "lengths.npy" in archive.namelist()


def _csv_head(path: Path) -> tuple[list[str], list[list[str]]]:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        lines.seek(0)
        rows = csv.reader(lines, delimiter=max(",;\t|", key=header.count))
        return next(rows, []), list(islice(rows, _ROWS))


def _parquet_head(path: Path) -> tuple[list[str], list[list[str]]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        head = next(file.iter_batches(_ROWS), None)
        names = list(map(str, file.schema_arrow.names))
        rows = [] if head is None else [[str(v) for v in row.values()] for row in head.to_pylist()]
        return names, rows


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


def is_table(data: Any) -> bool:
    """Whether this is a data frame or the name of a CSV or Parquet file."""
    if isinstance(data, str | os.PathLike):
        return str(data).lower().endswith(PARQUET + CSV)
    return hasattr(data, "columns")


def read_steps(
    data: Any, *, id: str, order: str | None = None, values: Sequence[str] = (), conditions: Sequence[str] = ()
) -> Ragged:
    """Sequences from a table of one row a step.

    Args:
        data: a CSV or Parquet file, or a pandas DataFrame.
        id: the column that is the same in all rows of a sequence; sequences keep the order in which they begin.
        order: the column by which a sequence's rows are sorted; None leaves them in the order of the table.
        values: the columns of the channels, in the order of the table; by default all others.
        conditions: columns that are the same in all rows of a sequence.

    Raises:
        UserError: a column is not there, not of finite numbers, misses values, or changes within a sequence.
    """
    pd = optional_import("pandas", "tables")
    frame = read_table(data) if isinstance(data, str | os.PathLike) else data.reset_index(drop=True)
    keys = [id] if order is None else [id, order]
    named = [*keys, *conditions]
    for name in (*named, *values):
        if name not in frame.columns:
            raise UserError(f"the table has no column {name!r}{did_you_mean(name, map(str, frame.columns))}")
    channels = [c for c in frame.columns if (c in values if values else c not in named)]
    if not len(frame) or not channels:
        raise UserError(
            f"the table has {len(frame)} rows and {len(channels)} value columns; give at least one of each"
        )
    for name in keys:
        _require_all(frame[name].isna().to_numpy(bool), name)
    matrix = np.stack([_numbers(frame[name]) for name in channels], 1)
    places = pd.factorize(frame[id])[0]
    times = np.zeros(len(frame)) if order is None else pd.factorize(frame[order], sort=True)[0]
    rows = np.lexsort((times, places))
    starts = np.flatnonzero(np.diff(places[rows], prepend=-1))
    told = {name: _constant(frame[name], places, rows[starts], id) for name in conditions}
    return Ragged(np.split(matrix[rows], starts[1:]), tuple(map(str, channels)), told)


def _require_all(bad: np.ndarray, name: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"column {name!r} misses a value in row {row}; fill it in or remove the row")


def _numbers(series: Any) -> np.ndarray:
    types = optional_import("pandas", "tables").api.types
    if not types.is_numeric_dtype(series.dtype) or types.is_complex_dtype(series.dtype):
        raise UserError(
            f"column {series.name!r} has values of {series.dtype}, which no channel can be;"
            " name the channels with --value-columns, or give it to --conditions"
        )
    values = series.to_numpy(np.float64, na_value=np.nan)
    _require_all(np.isnan(values), series.name)
    if np.isinf(values).any():
        raise UserError(f"column {series.name!r} is infinite in row {int(np.isinf(values).argmax())}; mend that row")
    return values


def _constant(series: Any, places: np.ndarray, firsts: np.ndarray, id: str) -> tuple[Column, np.ndarray]:
    """The condition of each sequence, from the first row of each."""
    own = series.iloc[firsts]
    there = own.iloc[places].reset_index(drop=True)
    plain = series.reset_index(drop=True)
    same = (plain == there).fillna(False).to_numpy(bool) | (plain.isna() & there.isna()).to_numpy(bool)
    if not same.all():
        row = int((~same).argmax())
        raise UserError(f"column {series.name!r} changes within a sequence of {id!r}, in row {row}; make it a value")
    return read_condition(own, None)
