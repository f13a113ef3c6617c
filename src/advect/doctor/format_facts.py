"""Measuring files of cells, tables and arrays before a source is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError, optional_import
from advect.data import read_table
from advect.data.cells_matrix import CellMatrix, stored_matrix
from advect.doctor.data_facts import places
from advect.doctor.format_checks import ArrayFigures, CellFigures, ColumnFigures


def gather_array(path: Path, look: int) -> ArrayFigures | None:
    """Look at ``look`` rows of a ``.npy`` file at most; None for other files and other types."""
    if path.suffix.lower() != ".npy":
        return None
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # whoever opens it says why
    if x.ndim < 2 or x.dtype.kind != "f" or not x.size:
        return None
    chosen = places(len(x), look)
    bad = sum(not np.isfinite(x[row]).all() for row in chosen)
    return ArrayFigures(shape=x.shape, dtype=str(x.dtype), looked=len(chosen), infinite=int(bad))


def gather_cells(path: Path, look: int, layer: str | None = None) -> CellFigures:
    """Look at ``look`` cells at most, in X or a layer of an ``.h5ad``. Raises UserError where it cannot be read."""
    h5py = optional_import("h5py", "cells")
    optional_import("anndata", "cells")
    try:
        file = h5py.File(path)
    except OSError as error:
        raise UserError(f"{path} is not an .h5ad file, or a damaged one ({error}); write it again") from error
    with file:
        try:
            matrix = stored_matrix(file, layer, backed=True, where=path.name)
        except UserError:  # stored by columns
            matrix = stored_matrix(file, layer, backed=False, where=path.name)
        return measure_cells(matrix, look)


def measure_cells(matrix: CellMatrix, look: int) -> CellFigures:
    """The figures of a matrix (N, D), from ``look`` of its rows at most."""
    found, chosen = np.zeros(matrix.shape[1], bool), places(matrix.shape[0], look)
    sums, infinite, low, high, whole = [], 0, 0.0, 0.0, True
    for _, rows in matrix.blocks(chosen):
        fine = np.isfinite(rows.data)
        cell_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        infinite += len(np.unique(cell_of[~fine]))
        values = rows.data[fine]
        found[rows.indices] = True
        sums.append(np.asarray(rows.sum(1)).reshape(-1))
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and bool((values == np.round(values)).all())
    totals = np.concatenate(sums) if sums else np.zeros(1)
    return CellFigures(
        cells=matrix.shape[0],
        genes=matrix.shape[1],
        looked=len(chosen),
        lowest=low,
        highest=high,
        whole=whole,
        infinite=infinite,
        silent=int((~found).sum()),
        empty=int((totals == 0).sum()),
        libraries=tuple(np.percentile(np.nan_to_num(totals), (5, 50, 95)).tolist()),  # pyright: ignore[reportArgumentType]
    )


def gather_columns(path: Path) -> list[ColumnFigures]:
    """The columns of a CSV or Parquet file. Raises UserError where it cannot be read."""
    return measure_columns(read_table(path))


def measure_columns(frame: Any) -> list[ColumnFigures]:
    """The columns of a pandas DataFrame."""
    pd = optional_import("pandas", "tables")
    columns = []
    for name, series in frame.items():
        counts = series.value_counts()
        named = not (pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_datetime64_any_dtype(series.dtype))
        columns.append(
            ColumnFigures(
                name=str(name),
                type=str(series.dtype),
                rows=len(series),
                missing=float(series.isna().mean()),
                distinct=len(counts),
                named=bool(named),
                rare=int((counts < 5).sum()) if named else 0,
            )
        )
    return columns
