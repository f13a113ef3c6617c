"""Vectors of which some features are known: files as questions, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError
from advect.core.files import atomic_write_text, require_path
from advect.data.arrays import LABELS
from advect.data.given import array_conditions, samples_name
from advect.data.numpy_files import load_arrays, save_arrays
from advect.data.parquet_columns import PARQUET
from advect.data.tables.files import CSV
from advect.data.tables.given import check_names
from advect.data.tables.raw_csv import RawCsv, read_raw
from advect.data.tables.text import MISSING
from advect.data.vectors.parquet import read_vectors, write_vectors


@dataclass(frozen=True, eq=False)
class VectorQuestion:
    """Vectors x (n, D), NaN where they are asked for, as a file has them.

    Attributes:
        conditions: n values each by name.
        name: of the vectors in a NumPy or Parquet file.
        arrays: all of a NumPy file, or the other columns of a Parquet file.
        raw: the fields of a CSV file.
    """

    suffix: str
    x: np.ndarray
    conditions: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    raw: RawCsv | None = None

    def answer(self, drawn: np.ndarray, path: Path) -> Path:
        """Write the vectors with what is asked for from ``drawn`` (n, D), whose texts a CSV file has.

        The suffix of the file read is appended to ``path``. What was known stands as it was.
        """
        file, asked = path.with_name(path.name + self.suffix), np.isnan(self.x)
        if self.raw is not None:
            width = self.x.shape[1]
            rows = [
                [str(new) if lost else old for lost, old, new in zip(*row, strict=False)] + row[1][width:]
                for row in zip(asked.tolist(), self.raw.rows, drawn, strict=True)
            ]
            atomic_write_text(file, self.raw.text(rows))
            return file
        whole = np.where(asked, drawn, self.x).astype(self.x.dtype)
        if self.suffix == ".parquet":
            others = {name: values.tolist() for name, values in self.arrays.items()}
            write_vectors(file, whole, column=self.name, others=others)
        else:
            save_arrays(file, {**self.arrays, self.name: whole})
        return file


def read_vector_question(
    path: Path, dim: int, conditions: Sequence[str], *, column: str | None, label: str | None
) -> VectorQuestion:
    """Vectors of a .npy, .npz, Parquet or CSV file, the last with the columns x1 to xD as samples.csv has them.

    Args:
        path: the file; NaN, null and empty values are asked for.
        dim: number of features.
        conditions: names of the flow's conditions; arrays or columns of these names are read, for "label" also the
            usual names of labels.
        column, label: names in the Parquet file of training.

    Raises UserError for a file of another kind or width, and without anything known or asked for.
    """
    file, name = require_path(path, holding="the vectors"), path.name.lower()
    if name.endswith(PARQUET):
        found = _of_parquet(file, conditions, column, label)
    elif name.endswith((".npy", ".npz")):
        found = _of_numpy(file, conditions)
    elif name.endswith(CSV):
        found = _of_csv(file, dim, conditions)
    else:
        raise UserError(f"{path} is no .npy, .npz, Parquet or CSV file by its name; give one")
    x = found.x
    if x.ndim != 2 or x.shape[1] != dim or not len(x) or x.dtype.kind not in "iuf":
        raise UserError(f"{path} holds {x.dtype} of shape {x.shape}; give numbers of shape (n, {dim}) as in training")
    if np.isinf(x).any():
        row, place = (int(i) for i in np.argwhere(np.isinf(x))[0])
        raise UserError(f"{path} has an infinite value in row {row}, column {place}; give a number, or NaN to draw it")
    for key, values in found.conditions.items():
        if len(values) != len(x):
            raise UserError(f"{path} has {len(values)} values of {key!r} for {len(x)} vectors; give one each")
    return found


def _of_parquet(file: Path, conditions: Sequence[str], column: str | None, label: str | None) -> VectorQuestion:
    read = read_vectors(file, column=column, labels=[label] if label else LABELS, holes=True)
    others = {} if read.labels is None or read.label is None else {read.label: read.labels}
    told = dict(zip(conditions, others.values(), strict=False))
    return VectorQuestion(".parquet", read.x, told, read.name, others)


def _of_numpy(file: Path, conditions: Sequence[str]) -> VectorQuestion:
    arrays = load_arrays(file)
    name = samples_name(file, arrays)
    told = array_conditions(file, arrays, conditions, len(np.atleast_1d(arrays[name])))
    return VectorQuestion(".npz" if name else ".npy", arrays[name], told, name, arrays)


def _of_csv(file: Path, dim: int, conditions: Sequence[str]) -> VectorQuestion:
    names = [f"x{i + 1}" for i in range(dim)]
    raw = read_raw(file)
    there = [name for name in conditions if name in raw.names]
    check_names(str(file), raw.names, [*names, *there])
    raw = raw.ordered([*names, *there])
    x = np.full((len(raw.rows), dim), np.nan)
    for k, name in enumerate(names):
        for i, word in enumerate(raw.column(name)):
            try:
                x[i, k] = np.nan if word == "" or word in MISSING else float(word)
            except ValueError:
                raise UserError(
                    f"{file} line {raw.lines[i]} has {word!r} in column {name!r}, which is no number; mend it"
                ) from None
    return VectorQuestion(".csv", x, {name: raw.column(name) for name in there}, raw=raw)
