"""Sequences from arrays (in memory, ``.npy``, ``.npz``) and tables."""

from __future__ import annotations

import csv
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.data.arrays import array_header, float64_rounds
from advect.data.numpy_files import load_arrays
from advect.data.parquet_columns import PARQUET
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.csv_files import csv_rows, find_separator
from advect.data.tables.files import CSV, FileStyle, read_table, style_of
from advect.data.tables.infer_columns import array_column, read_column, read_condition
from advect.data.text_files import open_text

_IDS = ("sequence_id", "series_id", "trajectory_id", "unique_id", "seq_id", "sequence", "series", "trajectory", "id")
_MORE_IDS = ("patient", "subject", "animal", "track", "individual", "unit")
_ORDERS = ("step", "time", "t", "timestamp", "datetime", "date", "order", "frame")
_ROWS = 1000


def step_columns(path: Path) -> tuple[str, str] | None:
    """Columns that identify and order a table's sequences, by usual names; None for one row per sample.

    Values of the first must repeat within the first rows.
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
    """Whether a NumPy file is an array (N, L, C), or values with lengths."""
    array = array_header(path)
    if array is None or len(array.shape) not in (2, 3):
        return False
    if len(array.shape) == 3 or path.suffix.lower() == ".npy":
        return len(array.shape) == 3
    with zipfile.ZipFile(path) as archive:
        return array.name == "values" and "lengths.npy" in archive.namelist()


def _csv_head(path: Path) -> tuple[list[str], list[list[str]]]:
    with open_text(path) as lines:
        rows = (row for row, _ in csv_rows(lines, find_separator(lines)))
        return next(rows, []), list(islice(rows, _ROWS))


def _parquet_head(path: Path) -> tuple[list[str], list[list[str]]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        head = next(file.iter_batches(_ROWS), None)
        names = list(map(str, file.schema_arrow.names))
        rows = [] if head is None else [[str(v) for v in row.values()] for row in head.to_pylist()]
        return names, rows


@dataclass(frozen=True)
class SequenceIds:
    """Names of sequences that go on after those of the data: numbers, or a prefix and a number of ``width`` digits."""

    first: int = 0
    prefix: str | None = None
    width: int = 0

    @classmethod
    def of(cls, ids: Sequence[Any]) -> SequenceIds:
        """Names after these, one a sequence; "generated-0" and on after words without numbers at the end."""
        if not all(isinstance(value, str) for value in ids):
            whole = all(isinstance(value, int) for value in ids)
            return cls(max(ids) + 1 if whole else 0)
        found = [re.fullmatch(r"(.*?)(\d{1,15})", value) for value in ids]
        heads = {match[1] for match in found if match}
        if not all(found) or len(heads) != 1:
            return cls(prefix="generated-")
        tails = [match[2] for match in found if match]
        widths = {len(tail) for tail in tails}
        return cls(max(map(int, tails)) + 1, heads.pop(), widths.pop() if len(widths) == 1 else 0)

    def names(self, places: np.ndarray) -> np.ndarray:
        """Names of the generated sequences of these numbers (n,)."""
        if self.prefix is None:
            return places + self.first
        return np.array([f"{self.prefix}{place + self.first:0{self.width}d}" for place in places.tolist()], object)


@dataclass(frozen=True)
class Ragged:
    """Sequences (L_i, K) float64 in the table units of ``columns``, and conditions.

    ``conditions`` maps names to a column and values (N,) in table units, NaN where missing. If ``timed``, the last
    column is the time of each step.
    """

    steps: list[np.ndarray]
    columns: tuple[Column, ...]
    conditions: dict[str, tuple[Column, np.ndarray]]
    timed: bool = False
    ids: SequenceIds = SequenceIds()
    names: tuple[str, ...] = ()
    """Columns of a table in its order."""
    style: FileStyle | None = None
    """Style of a table's file."""

    @property
    def channels(self) -> int:
        """Number of columns without the time."""
        return len(self.columns) - self.timed


def read_arrays(
    data: Any, lengths: Any, conditions: Mapping[str, Any] | Sequence[str], *, holes: bool = False
) -> Ragged:
    """Sequences from arrays.

    Args:
        data: (N, L, C), list of (L_i, C), or path of a ``.npy`` or ``.npz`` file. An archive has ``values`` and, if
            they differ, ``lengths``; a single array may have any name.
        lengths: (N,) whole numbers: leading real steps in (N, L, C), or lengths of consecutive pieces of values (S,
            C). None if all steps are real.
        conditions: texts, whole numbers or reals (N,) by name; or names of arrays in an archive.
        holes: take NaN as an unknown value.

    Raises:
        UserError: the arrays do not fit together or hold other than finite real numbers.
    """
    if isinstance(data, str | os.PathLike):
        file = Path(data).expanduser()
        arrays = open_arrays(file)
        data, lengths = arrays["values"], arrays.get("lengths") if lengths is None else lengths
        for name in () if isinstance(conditions, Mapping) else conditions:
            if name not in arrays:
                raise UserError(f"conditions has {name!r}, which {file} has not{did_you_mean(name, arrays)}")
        if not isinstance(conditions, Mapping):
            conditions = {name: arrays[name] for name in conditions}
    elif not isinstance(conditions, Mapping):
        if conditions:
            raise UserError(f"conditions must map names to arrays for arrays, got {list(conditions)}")
        conditions = {}
    if isinstance(data, list | tuple):
        if lengths is not None:
            raise UserError("lengths are for one array; the arrays of a list have their own, so leave lengths out")
        steps = [_array(x, f"sequence {i}") for i, x in enumerate(data)]
    else:
        steps = cut(_array(data, "the array"), lengths)
    _check(steps, holes)
    every, kind = np.concatenate(steps), np.result_type(*{x.dtype for x in steps})
    for channel, values in enumerate(every.T):
        if np.isnan(values).all():
            raise UserError(f"channel {channel} has no values; leave it out")
    read = [array_column(f"value_{i}", x, kind) for i, x in enumerate(every.T)]
    steps = np.split(np.stack([x for _, x in read], 1), np.cumsum([len(x) for x in steps])[:-1])
    told = {key: read_label(key, values, len(steps)) for key, values in conditions.items()}
    return Ragged(steps, tuple(replace(column, missing=False) for column, _ in read), told)


def open_arrays(file: Path) -> dict[str, np.ndarray]:
    """Arrays of a ``.npy`` or ``.npz`` file by name; the sequences are called "values". Raises UserError."""
    arrays = load_arrays(file)
    if len(arrays) == 1:
        arrays = {"values": next(iter(arrays.values()))}
    if "values" not in arrays:
        raise UserError(f"{file} has the arrays {', '.join(arrays)}, none called 'values'; name the sequences so")
    return arrays


def _array(x: Any, what: str) -> np.ndarray:
    try:
        x = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
    except ValueError as error:
        raise UserError(f"{what} is ragged; give a list of arrays (L_i, C)") from error
    if x.dtype.kind not in "buif":
        raise UserError(f"{what} must hold real numbers, got dtype {x.dtype}; convert it")
    if x.dtype.kind in "iu" and float64_rounds(x):
        raise UserError(
            f"{what} has whole numbers beyond 2^53 that float64 does not hold; subtract the least, or divide them"
        )
    return x.astype(x.dtype.newbyteorder("="))


def cut(x: np.ndarray, lengths: Any) -> list[np.ndarray]:
    """Views (L_i, C) of the sequences in x, with ``lengths`` as in :func:`read_arrays`. Raises UserError."""
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


def _check(steps: list[np.ndarray], holes: bool) -> None:
    if not steps:
        raise UserError("there are no sequences; give at least one")
    for i, x in enumerate(steps):
        if x.ndim != 2 or not x.size or x.shape[1] != steps[0].shape[1]:
            raise UserError(
                f"sequence {i} has shape {x.shape}, the first {steps[0].shape};"
                " each must be (L, C), L >= 1, of the same C >= 1"
            )
        bad = np.isinf(x) if holes else ~np.isfinite(x)
        if bad.any():
            step, channel = (int(v) for v in np.argwhere(bad)[0])
            unknown = ", or take NaN for unknown by holes=True (--holes)" if np.isnan(x[step, channel]) else ""
            raise UserError(
                f"sequence {i} holds {x[step, channel]} at step {step}, channel {channel}; fill it in or leave it out"
                + unknown
            )


def read_label(name: str, values: Any, count: int) -> tuple[Column, np.ndarray]:
    """Condition from an array, without pandas."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.shape != (count,) or array.dtype.kind not in "buifU":
        raise UserError(
            f"conditions[{name!r}] must be ({count},) texts or numbers, one a sequence,"
            f" got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"conditions[{name!r}] holds NaN or infinite values; leave those sequences out")
        return array_column(name, array)
    names, places = np.unique(array, return_inverse=True)
    dtype = "object" if array.dtype.kind == "U" else str(array.dtype)
    return Categories(name=name, dtype=dtype, names=names.tolist()), places.astype(np.float64)


def is_table(data: Any) -> bool:
    """Whether this is a data frame or the path of a CSV or Parquet file."""
    if isinstance(data, str | os.PathLike):
        return str(data).lower().endswith(PARQUET + CSV)
    return hasattr(data, "columns")


def read_steps(
    data: Any,
    *,
    id: str | None,
    order: str | None = None,
    values: Sequence[str] = (),
    conditions: Sequence[str] = (),
    holes: bool = False,
    **words: Any,
) -> Ragged:
    """Sequences from a table with one row per step.

    Args:
        data: CSV or Parquet file, or pandas DataFrame.
        id: column that identifies sequences, kept in order of first appearance; None for one series.
        order: column that orders a sequence's rows; None keeps the table's order.
        values: columns of the channels, in table order; default all others.
        conditions: columns constant within each sequence.
        holes: take missing values of the channels as unknown ones.
        words: for CSV, ``missing``, ``decimal`` and ``date_order`` of :func:`read_table`.

    Raises:
        UserError: a column is missing, incomplete, not finite numbers, or changes within a sequence.
    """
    pd = optional_import("pandas", "tables")
    frame = read_table(data, **words) if isinstance(data, str | os.PathLike) else data.reset_index(drop=True)
    forms = frame.attrs.get("forms", {})
    keys = [name for name in (id, order) if name is not None]
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
        _require_all(frame[name].isna().to_numpy(bool), name, "fill it in or remove the row")
    date_order = words.get("date_order", "auto")
    places = np.zeros(len(frame), np.int64) if id is None else pd.factorize(frame[id])[0]
    read = [_channel(frame[name], forms.get(name), date_order, places, holes) for name in channels]
    read += [] if order is None else [_order(frame[order], forms.get(order), date_order)]
    matrix = np.stack([x for _, x in read], 1)
    rows = np.lexsort((matrix[:, -1] if order is not None else np.zeros(len(frame)), places))
    starts = np.flatnonzero(np.diff(places[rows], prepend=-1))
    told = {name: _constant(frame[name], places, rows[starts], id or "the table") for name in conditions}
    ids = SequenceIds() if id is None else SequenceIds.of(frame[id].iloc[rows[starts]].tolist())
    columns = tuple(column for column, _ in read)
    used = tuple(c for c in frame.columns if c in named or c in channels)
    style = style_of(data, frame.attrs, used)
    return Ragged(np.split(matrix[rows], starts[1:]), columns, told, order is not None, ids, used, style)


def _order(series: Any, form: Any, date_order: str) -> tuple[Column, np.ndarray]:
    """Order column and its values (N,), numbers or times. Raises UserError for text, which would sort by letters."""
    try:
        column, values = read_column(series, categorical=False, form=form, date_order=date_order)
    except UserError:
        if not optional_import("pandas", "tables").api.types.is_object_dtype(series.dtype):
            raise
        column, values = None, np.empty(0)
    if not isinstance(column, Number):
        raise UserError(
            f"the order column {series.name!r} holds {series.iloc[0]!r}, which is no number or date that sorts steps;"
            " write it as 2024-01-31 or as a number, or leave order_column out where rows are in order"
        )
    return column, values


def _require_all(bad: np.ndarray, name: str, fix: str) -> None:
    if bad.any():
        raise UserError(f"column {name!r} misses a value in row {int(bad.argmax())}; {fix}")


def _channel(series: Any, form: Any, date_order: str, places: np.ndarray, holes: bool) -> tuple[Column, np.ndarray]:
    """Column of a channel, and its values (N,) in table units, NaN if missing where ``holes``.

    Words must change within a sequence (``places``).
    """
    types = optional_import("pandas", "tables").api.types
    if not holes:
        fix = "fill it in, remove the row, or take such values for unknown by --holes"
        _require_all(series.isna().to_numpy(bool), series.name, fix)
    if types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype):
        infinite = np.isinf(series.to_numpy(np.float64, na_value=np.nan))
        if infinite.any():
            raise UserError(f"column {series.name!r} is infinite in row {int(infinite.argmax())}; mend that row")
    try:
        column, values = read_column(series, categorical=False, form=form, date_order=date_order)
    except UserError:
        if not types.is_object_dtype(series.dtype):
            raise
        column, values = None, np.empty(0)
    words, there = isinstance(column, Categories) and not set(column.names) <= {True, False}, ~np.isnan(values)
    if column is None or (words and _constant_within(places[there], values[there])):
        raise UserError(
            f"column {series.name!r} has values of {series.dtype}, which no channel can be;"
            " name the channels with --value-columns, or give it to --conditions"
        )
    return replace(column, missing=False), values


def _constant_within(places: np.ndarray, values: np.ndarray) -> bool:
    """Whether values (N,) are the same within each sequence (``places``)."""
    return len(np.unique(np.stack([places, values]), axis=1).T) == len(np.unique(places))


def _constant(series: Any, places: np.ndarray, firsts: np.ndarray, id: str) -> tuple[Column, np.ndarray]:
    """Condition of each sequence, from its first row."""
    own = series.iloc[firsts]
    there = own.iloc[places].reset_index(drop=True)
    plain = series.reset_index(drop=True)
    same = (plain == there).fillna(False).to_numpy(bool) | (plain.isna() & there.isna()).to_numpy(bool)
    if not same.all():
        row = int((~same).argmax())
        raise UserError(f"column {series.name!r} changes within a sequence of {id!r}, in row {row}; make it a value")
    return read_condition(own)
