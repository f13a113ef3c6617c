"""Vectors in Parquet files: columns of equally long lists of numbers, such as embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import, quoted_flag
from advect.core.files import atomic_write
from advect.data.arrays import ArrayType
from advect.data.parquet_columns import is_vector_type


class VectorMetadata(TypedDict, total=False):
    """What samples have of the data: names of the vector and label columns read, and the type of the values."""

    column: str
    label: str | None
    type: ArrayType


class VectorColumn(NamedTuple):
    """Vectors x (N, D) with their column's name, and labels (N,) with theirs, if any."""

    name: str
    x: np.ndarray
    label: str | None
    labels: np.ndarray | None


def read_vectors(file: Path, *, column: str | None, labels: Collection[str], holes: bool = False) -> VectorColumn:
    """Vectors of a Parquet file, with labels from the first column it has out of ``labels``.

    Args:
        file: Parquet file.
        column: column of lists; None takes the only one.
        holes: take missing numbers in a list as NaN.

    Raises:
        UserError: the file is damaged, the column is missing or ambiguous, or its lists are incomplete or differ in
            length.
    """
    parquet = optional_import("pyarrow.parquet", "tables")
    try:
        table = parquet.ParquetFile(file)
        name = _chosen(file, table.schema_arrow, column)
        label = next((one for one in labels if one in table.schema_arrow.names), None)
        parts, told = [], []
        for group in range(table.num_row_groups):
            content = table.read_row_group(group, columns=[name, *([label] if label else [])])
            for chunk in content.column(name).chunks:
                parts.append(_matrix(file, name, chunk, parts, holes))
            told += content.column(label).to_pylist() if label else []
    except UserError:
        raise
    except Exception as error:  # pyarrow raises whatever a damaged page leads it to
        why = " ".join(str(error).split())
        raise UserError(f"{file} is a damaged Parquet file ({why}); write it again") from error
    if not any(map(len, parts)):
        raise UserError(f"{file} has no rows; give at least one")
    if None in told:
        raise UserError(
            f"{file} has nothing in row {told.index(None)} of column {label!r}; fill it or remove such rows"
        )
    return VectorColumn(name, np.concatenate([p for p in parts if len(p)]), label, np.array(told) if label else None)


def _chosen(file: Path, schema: Any, column: str | None) -> str:
    """Name of the column of vectors."""
    names = [field.name for field in schema if is_vector_type(field.type)]
    if column is None:
        if len(names) == 1:
            return names[0]
        why = f"has the columns of vectors {', '.join(names)}" if names else "has no column of lists of numbers"
        fix = (
            f"; name one, {quoted_flag('vector-column', names[0])}"
            if names
            else f", but {', '.join(map(str, schema.names))}; write the vectors as such lists"
        )
        raise UserError(f"{file} {why}{fix}")
    if column not in schema.names:
        raise UserError(f"{file} has no column {column!r}{did_you_mean(column, names or schema.names)}")
    if column not in names:
        raise UserError(
            f"column {column!r} of {file} holds {schema.field(column).type}, not lists of numbers; name one that does"
        )
    return column


def _matrix(file: Path, name: str, chunk: Any, before: Sequence[np.ndarray], holes: bool) -> np.ndarray:
    """Lists of an Arrow array as (n, D); ``before`` holds the preceding rows."""
    compute = optional_import("pyarrow.compute", "tables")
    first = sum(map(len, before))
    lengths = compute.list_value_length(chunk)
    if lengths.null_count:
        row = first + lengths.is_null().to_pylist().index(True)
        raise UserError(f"{file} has nothing in row {row} of column {name!r}; remove such rows or fill them in")
    counts = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    width = next((part.shape[1] for part in before if len(part)), int(counts[0]) if len(counts) else 0)
    other = counts != width
    if other.any():
        row = int(other.argmax())
        raise UserError(
            f"{file} has {counts[row]} numbers in row {first + row} of column {name!r} and {width} in row 0;"
            " make all of its lists equally long"
        )
    values = chunk.flatten()
    if values.null_count and not holes:
        row = first + values.is_null().to_pylist().index(True) // width
        raise UserError(
            f"{file} lacks a number in row {row} of column {name!r}; remove such rows, fill them in or"
            " take such numbers for unknown by --holes"
        )
    return values.to_numpy(zero_copy_only=False).reshape(len(chunk), width)


def write_vectors(file: Path, x: np.ndarray, *, column: str, others: Mapping[str, Sequence[Any]]) -> None:
    """Write x (N, D) as a column of lists and other columns (N,), readable by :func:`read_vectors`."""
    arrow, parquet = optional_import("pyarrow", "tables"), optional_import("pyarrow.parquet", "tables")
    flat = arrow.array(np.ascontiguousarray(x).reshape(-1))
    lists = arrow.FixedSizeListArray.from_arrays(flat, x.shape[1])
    table = arrow.table({column: lists, **{name: list(values) for name, values in others.items()}})
    atomic_write(file, lambda partial: parquet.write_table(table, partial))
