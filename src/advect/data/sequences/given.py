"""Files of sequences in the form of the training data, some of whose values are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.files import atomic_write_text
from advect.data.given import array_conditions
from advect.data.numpy_files import save_arrays
from advect.data.parquet_columns import PARQUET
from advect.data.sequences.dataset import SequenceMetadata
from advect.data.sequences.files import cut, is_table, open_arrays
from advect.data.tables.columns import Categories, Column, Number, column_from_config
from advect.data.tables.files import read_table, write_table
from advect.data.tables.given import series_units, word_units
from advect.data.tables.raw_csv import RawCsv, content, raw_rows, read_raw


@dataclass(frozen=True)
class StepFile:
    """Sequences of a file.

    Attributes:
        steps: (L_i, K) float64 each in the table units of the channels, and last of the order if the data have one;
            NaN where empty.
        conditions: a value for each sequence, None where missing, of those that the file has.
        suffix: of the file, which its answers have too.
        frame: the rows, sorted as ``steps``, with text as it stands in a CSV file; None for arrays.
        rows: (R,) row of the file that each row of ``frame`` is.
        id: column of ``frame`` that tells sequences apart; None for one series and for arrays.
        raw: the fields of a CSV file.
        index: columns that form the index of a Parquet file.
        arrays: those of a NumPy file.
    """

    steps: list[np.ndarray]
    conditions: dict[str, list[Any]]
    suffix: str = ""
    frame: Any = None
    rows: np.ndarray | None = None
    id: str | None = None
    raw: RawCsv | None = None
    index: Sequence[str] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def starts(self) -> np.ndarray:
        """Row of ``frame`` at which each sequence starts, (N,)."""
        return np.cumsum([0, *map(len, self.steps)])[:-1]

    def names(self) -> list[str]:
        """Name of each sequence in messages and pictures; empty for a single one."""
        if len(self.steps) == 1:
            return [""]
        if self.id is None:
            return [f"sequence {i}" for i in range(len(self.steps))]
        return [f"{self.id} {value}" for value in self.frame[self.id].iloc[self.starts]]

    def answer(self, drawn: Sequence[np.ndarray], columns: Sequence[Column], path: Path) -> Path:
        """Write the file with empty channels from ``drawn`` (L_i, C) in the table units of ``columns``.

        The suffix of the file is appended to ``path``. What was known stands as it was.
        """
        file = path.with_name(path.name + self.suffix)
        if self.frame is None:
            self._answer_arrays(drawn, columns, file)
            return file
        assert self.rows is not None
        pd, new = optional_import("pandas", "tables"), np.concatenate(list(drawn))
        asked = np.isnan(np.concatenate(self.steps)[:, : len(columns)])
        if self.raw is not None:
            rows = [list(row) for row in self.raw.rows]
            for column, values, lost in zip(columns, new.T, asked.T, strict=True):
                words = raw_rows(column.to_text(np.ascontiguousarray(values)).to_frame(), self.raw.separator)
                place = self.raw.names.index(column.name)
                for i in np.flatnonzero(lost).tolist():
                    rows[self.rows[i]][place] = words[i][0]
            atomic_write_text(file, self.raw.text(rows))
            return file
        frame = self.frame.reset_index(drop=True)
        for column, values, lost in zip(columns, new.T, asked.T, strict=True):
            filled = column.to_series(np.ascontiguousarray(values))
            own = [a if here else b for a, b, here in zip(filled, frame[column.name], lost, strict=True)]
            frame[column.name] = pd.Series(own, dtype=filled.dtype)
        write_table(file, frame.iloc[np.argsort(self.rows)], index=self.index)
        return file

    def _answer_arrays(self, drawn: Sequence[np.ndarray], columns: Sequence[Column], file: Path) -> None:
        arrays = {**self.arrays, "values": self.arrays["values"].copy()}
        for row, new in zip(_sequences(arrays), drawn, strict=True):
            filled = np.stack([_in_array(v, c) for v, c in zip(new.T, columns, strict=True)], 1)
            row[:] = np.where(np.isnan(row), filled, row)
        save_arrays(file, arrays if self.suffix == ".npz" else {"": arrays["values"]})


def read_step_file(path: Path, facts: SequenceMetadata) -> StepFile:
    """Sequences of a file with the columns, or the channels, of the data.

    Raises UserError if it cannot be read, lacks a column, or holds a value that a column cannot have.
    """
    return _table(path, facts) if is_table(path) else _arrays(path, facts)


def _table(path: Path, facts: SequenceMetadata) -> StepFile:
    pd = optional_import("pandas", "tables")
    channels, order = list(map(column_from_config, facts["columns"])), facts["order"]
    columns = channels if order is None else [*channels, column_from_config(order)]
    raw = None if path.name.lower().endswith(PARQUET) else read_raw(path)
    if raw is None:
        frame, suffix = read_table(path), ".parquet"
    else:
        frame = pd.DataFrame([list(map(content, row)) for row in raw.rows], columns=raw.names, dtype=object)
        suffix = ".tsv" if raw.separator == "\t" else ".csv"
    for column in columns:
        if column.name not in frame.columns:
            near = did_you_mean(column.name, map(str, frame.columns))
            raise UserError(f"{path} has no column {column.name!r}, which the flow was trained on{near}")
    if not len(frame):
        raise UserError(f"{path} has no rows; give the steps that are known")

    def units(column: Column) -> np.ndarray:
        if raw is not None:
            return word_units(raw, column, beyond=True)
        return series_units(str(path), frame[column.name], column, beyond=True)

    values = np.stack(list(map(units, columns)), 1)
    if order is not None and np.isnan(values[:, -1]).any():
        row = int(np.isnan(values[:, -1]).argmax())
        raise UserError(f"{path} misses the time {columns[-1].name!r} in row {row}; fill it in")
    key = facts["id"] if facts["id"] in frame.columns else None
    places = np.zeros(len(frame), np.int64)
    if key is not None:
        lost = frame[key].isna() if raw is None else frame[key] == ""
        if lost.any():
            raise UserError(f"{path} misses {key!r} in row {int(lost.argmax())}; fill it in")
        places = pd.factorize(frame[key])[0]
    rows = np.lexsort((np.zeros(len(frame)) if order is None else values[:, -1], places))
    starts = np.flatnonzero(np.diff(places[rows], prepend=-1))
    told = [column for column in map(column_from_config, facts["conditions"]) if column.name in frame]
    conditions = {c.name: _of_sequences(units(c), c, places, rows[starts], path) for c in told}
    steps, index = np.split(values[rows], starts[1:]), frame.attrs.get("index", ())
    return StepFile(steps, conditions, suffix, frame.iloc[rows], rows, key, raw, index)


def _of_sequences(x: np.ndarray, column: Column, places: np.ndarray, firsts: np.ndarray, where: Path) -> list[Any]:
    """Value of a condition, x (R,) in table units, in the first row of each sequence, None where missing."""
    own = x[firsts]
    same = (x == own[places]) | (np.isnan(x) & np.isnan(own[places]))
    if not same.all():
        row = int((~same).argmax())
        raise UserError(
            f"{where}: condition {column.name!r} changes within a sequence in row {row}; give one value for each"
        )
    values = iter(column.told(own[~np.isnan(own)]))
    return [None if np.isnan(v) else next(values) for v in own]


def _arrays(path: Path, facts: SequenceMetadata) -> StepFile:
    if facts["order"] is not None:
        raise UserError(f"{path} is an array, and the flow was trained on a table of steps in time; give such a table")
    columns = list(map(column_from_config, facts["columns"]))
    names = [config["name"] for config in facts["conditions"]]
    arrays = open_arrays(path)
    x = arrays["values"]
    if x.ndim not in (2, 3) or x.shape[-1] != len(columns) or x.dtype.kind not in "buif":
        raise UserError(f"{path} must hold numbers (N, L, {len(columns)}), got {x.dtype} of shape {x.shape}")
    if not x.size:
        raise UserError(f"{path} is empty, its shape is {x.shape}; give the steps that are known")
    own = np.stack([_channel(x[..., i].astype(np.float64), column) for i, column in enumerate(columns)], -1)
    steps = _sequences({**arrays, "values": own})
    conditions = array_conditions(path, arrays, names, len(steps))
    return StepFile(steps, conditions, path.suffix.lower(), arrays=arrays)


def _sequences(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Views (L_i, C) of the sequences of a file; values (L, C) without lengths are one."""
    x, lengths = arrays["values"], arrays.get("lengths")
    return cut(x[None] if x.ndim == 2 and lengths is None else x, lengths)


def _channel(x: np.ndarray, column: Column) -> np.ndarray:
    """Array values in the units of ``column``."""
    if isinstance(column, Number):
        return x if column.decimals is None else x.round(column.decimals)
    assert isinstance(column, Categories)  # booleans
    return np.where(np.isnan(x), np.nan, x - float(column.names[0]))


def _in_array(x: np.ndarray, column: Column) -> np.ndarray:
    """Table units as the values of an array."""
    return x + float(column.names[0]) if isinstance(column, Categories) else x
