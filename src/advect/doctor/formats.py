"""Statistics of cells, tables, arrays and sequences, and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError, optional_import, quoted_flag
from advect.core.types import LENGTH, Length
from advect.data import Dataset, read_table
from advect.data.cells.matrix import CellMatrix, reading_h5ad, stored_matrix
from advect.data.numpy_files import DAMAGED, check_arrays
from advect.data.repeats import evenly_spaced
from advect.doctor.report import Figure, Finding, Share


@dataclass(frozen=True, kw_only=True)
class CellStats:
    """Statistics of ``looked`` cells of a matrix (cells, genes).

    Attributes:
        lowest, highest, whole: range of the values, and whether all are integers.
        infinite: cells with NaN or infinite values.
        silent: genes that are zero in every cell.
        empty: cells without counts.
        libraries: 5th, 50th and 95th percentile of library size.
    """

    cells: int
    genes: int
    looked: int
    lowest: float
    highest: float
    whole: bool
    infinite: int
    silent: int
    empty: int
    libraries: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ColumnStats:
    """Statistics of a column.

    Attributes:
        missing: share of missing values.
        distinct: number of distinct values.
        named: whether values are names, not numbers.
        rare: names that occur fewer than five times.
        why: kind and reason, of a column of CSV.
    """

    name: str
    type: str
    rows: int
    missing: float
    distinct: int
    named: bool
    rare: int = 0
    why: str = ""


MOST_TYPES = 20
"""Most columns whose type is explained."""


@dataclass(frozen=True, kw_only=True)
class ArrayStats:
    """Shape and type of a stored array, and non-finite rows of ``looked``."""

    shape: tuple[int, ...]
    dtype: str
    looked: int
    infinite: int


@dataclass(frozen=True, kw_only=True)
class LengthStats:
    """Numbers of real steps of sequences."""

    shortest: int
    median: int
    longest: int


def measure_array(path: Path, look: int) -> ArrayStats | None:
    """Statistics of at most ``look`` rows of a ``.npy`` file; None for other files and types."""
    if path.suffix.lower() != ".npy":
        return None
    try:
        check_arrays(path, mapped=True)
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED:
        return None  # building the data set reports it
    if x.ndim < 2 or x.dtype.kind != "f" or not x.size:
        return None
    chosen = evenly_spaced(len(x), look)
    bad = sum(not np.isfinite(x[row]).all() for row in chosen)
    return ArrayStats(shape=x.shape, dtype=str(x.dtype), looked=len(chosen), infinite=int(bad))


def read_cells(path: Path, look: int, layer: str | None = None) -> CellStats:
    """Statistics of at most ``look`` cells of X or a layer of an ``.h5ad``. Raises UserError if unreadable."""
    h5py = optional_import("h5py", "cells")
    optional_import("anndata", "cells")
    with reading_h5ad(path), h5py.File(path) as file:
        try:
            matrix = stored_matrix(file, layer, backed=True, where=path.name)
        except UserError:  # stored by columns
            matrix = stored_matrix(file, layer, backed=False, where=path.name)
        return measure_cells(matrix, look)


def measure_cells(matrix: CellMatrix, look: int) -> CellStats:
    """Statistics of a matrix (N, D), from at most ``look`` rows."""
    expressed, chosen = np.zeros(matrix.shape[1], bool), evenly_spaced(matrix.shape[0], look)
    sums, infinite, low, high, whole = [], 0, 0.0, 0.0, True
    for _, rows in matrix.blocks(chosen):
        fine = np.isfinite(rows.data)
        cell_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        infinite += len(np.unique(cell_of[~fine]))
        values = rows.data[fine]
        expressed[rows.indices] = True
        sums.append(np.asarray(rows.sum(1)).reshape(-1))
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and bool((values == np.round(values)).all())
    totals = np.concatenate(sums) if sums else np.zeros(1)
    return CellStats(
        cells=matrix.shape[0],
        genes=matrix.shape[1],
        looked=len(chosen),
        lowest=low,
        highest=high,
        whole=whole,
        infinite=infinite,
        silent=int((~expressed).sum()),
        empty=int((totals == 0).sum()),
        libraries=tuple(np.percentile(np.nan_to_num(totals), (5, 50, 95)).tolist()),  # pyright: ignore[reportArgumentType]
    )


def read_columns(path: Path, **options: Any) -> list[ColumnStats]:
    """Statistics of the columns of a CSV or Parquet file, read by :func:`read_table` with ``options``.

    Raises UserError if unreadable.
    """
    return measure_columns(read_table(path, **options))


def measure_columns(frame: Any) -> list[ColumnStats]:
    """Statistics of the columns of a pandas DataFrame."""
    pd = optional_import("pandas", "tables")
    columns = []
    for name, series in frame.items():
        counts = series.value_counts()
        named = not (pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_datetime64_any_dtype(series.dtype))
        columns.append(
            ColumnStats(
                name=str(name),
                type=str(series.dtype),
                rows=len(series),
                missing=float(series.isna().mean()),
                distinct=len(counts),
                named=bool(named),
                rare=int((counts < 5).sum()) if named else 0,
                why=frame.attrs.get("why", {}).get(name, ""),
            )
        )
    return columns


def sequence_lengths(dataset: Dataset) -> LengthStats | None:
    """Statistics of sequence lengths; None if all are equal."""
    condition = dataset.spec.conditions.get(LENGTH)
    if not isinstance(condition, Length):
        return None
    shares = np.array(condition.frequencies)
    present = np.flatnonzero(shares) + 1
    middle = int(np.searchsorted(shares.cumsum(), 0.5 * shares.sum())) + 1
    return LengthStats(shortest=int(present[0]), median=middle, longest=int(present[-1]))


def check_array(a: ArrayStats) -> Finding:
    """Check for NaN and infinite values."""
    figures: dict[str, Figure] = {
        "shape": "x".join(map(str, a.shape)),
        "type": a.dtype,
        "rows looked at": a.looked,
        "not finite": a.infinite,
    }
    if a.infinite:
        advice = "remove those rows or fill them in; --holes takes NaN of vectors for unknown"
        return Finding("problem", "The array has NaN or infinite values", figures, advice)
    return Finding("ok", "The array is finite", figures)


def check_units(c: CellStats) -> Finding:
    """Check whether values are raw counts, normalised, or logarithms."""
    figures: dict[str, Figure] = {
        "cells": c.cells,
        "genes": c.genes,
        "cells looked at": c.looked,
        "lowest": c.lowest,
        "highest": c.highest,
        "whole numbers": "yes" if c.whole else "no",
    }
    if c.infinite:
        figures["cells not finite"] = c.infinite
        return Finding("problem", "Cells have NaN or infinite values", figures, "remove those cells or fill them in")
    if c.lowest < 0:
        title = "There are negative values: the genes are scaled already, and are no counts"
        return Finding("note", title, figures, "--no-normalise --no-log1p; or --layer with the counts")
    if c.whole:
        return Finding("ok", "The values are raw counts", figures)
    if c.highest <= 20:
        title = "The values are logarithms already, it seems: they are not whole and none is above 20"
        return Finding("note", title, figures, "--no-normalise --no-log1p; or --layer with the counts")
    title = "The values are not whole, yet too large for logarithms: counts that were normalised, it seems"
    return Finding("note", title, figures, "--no-normalise; or --layer with the counts")


def check_genes(c: CellStats) -> Finding:
    """Check the numbers of genes and of silent ones."""
    figures: dict[str, Figure] = {"genes": c.genes, "never found": c.silent, "cells looked at": c.looked}
    if c.genes > 5000:
        title = "There are many genes, most of which vary little"
        return Finding("note", title, figures, "--highly-variable 2000, or --pca 50")
    if c.silent > 0.01 * c.genes:
        return Finding("note", "Some genes are found in no cell", figures, "--highly-variable leaves them out")
    return Finding("ok", "Nearly all genes are found in some cell", figures)


def check_libraries(c: CellStats) -> Finding | None:
    """Check the spread of library sizes."""
    if c.lowest < 0:
        return None
    low, middle, high = c.libraries
    figures: dict[str, Figure] = {"5%": low, "median": middle, "95%": high, "empty cells": c.empty}
    if c.empty:
        return Finding("note", "Some cells have no counts at all", figures, "filter them out")
    if high > 20 * max(low, 1e-12):
        title = "The cells' sums differ more than twentyfold"
        return Finding("note", title, figures, "filter cells of few counts, and keep --normalise")
    return Finding("ok", "The cells' sums are of one order", figures)


def check_columns(columns: list[ColumnStats]) -> Finding | None:
    """Count the columns by type."""
    if not columns:
        return None
    named = sum(c.named for c in columns)
    figures: dict[str, Figure] = {
        "rows": columns[0].rows,
        "columns": len(columns),
        "of names": named,
        "of numbers": len(columns) - named,
    }
    return Finding("ok", "The table can be read", figures)


def check_types(columns: list[ColumnStats]) -> Finding | None:
    """Say why columns of text got their types, those that are not plain first."""
    plain = ("number (whole numbers)", "number (numbers)", "text (words)")
    told = sorted((c for c in columns if c.why), key=lambda c: c.why in plain)
    if not told:
        return None
    figures: dict[str, Figure] = {c.name: c.why for c in told[:MOST_TYPES]}
    figures |= {"and others": len(told) - MOST_TYPES} if len(told) > MOST_TYPES else {}
    return Finding("ok", "The columns' types follow from all their values", figures)


def check_missing(columns: list[ColumnStats]) -> Finding | None:
    """Check for missing values."""
    gone = [c.name for c in columns if c.missing == 1]
    worst = max(columns, key=lambda c: c.missing, default=None)
    if worst is None or worst.missing == 0:
        return Finding("ok", "No value is missing", {"columns": len(columns)})
    figures: dict[str, Figure] = {
        "columns with missing values": sum(c.missing > 0 for c in columns),
        "most in": worst.name,
        "its share": Share(worst.missing),
    }
    if gone:
        words = ", ".join(gone[:5])
        return Finding(
            "problem", "A column has no values at all", {**figures, "empty": words}, quoted_flag("drop", *gone[:5])
        )
    if worst.missing > 0.5:
        return Finding("note", "A column misses most of its values", figures, quoted_flag("drop", worst.name))
    return Finding("ok", "Values are missing; missingness is learned with the rest", figures)


def check_ids(columns: list[ColumnStats]) -> Finding | None:
    """Check for columns that identify rows."""
    ids = looks_like_id(columns)
    if not ids:
        return None
    figures: dict[str, Figure] = {"columns": ", ".join(ids[:5]), "rows": columns[0].rows}
    title = "A column has another value in each row, as a name or a number of rows has"
    return Finding("note", title, figures, quoted_flag("drop", *ids[:5]))


def looks_like_id(columns: list[ColumnStats]) -> list[str]:
    """Names of columns with a distinct name or integer in each row."""
    return [
        c.name
        for c in columns
        if c.rows > 20 and c.missing == 0 and c.distinct == c.rows and (c.named or c.type.lower().startswith("int"))
    ]


def check_rare(columns: list[ColumnStats]) -> Finding | None:
    """Check for rare names and constant columns."""
    rare = {c.name: c.rare for c in columns if c.named and c.rare and c.distinct < c.rows}
    constant = [c.name for c in columns if c.distinct == 1]
    if constant:
        words = ", ".join(constant[:5])
        return Finding("note", "A column never changes", {"columns": words}, "none is needed: it is not learned")
    if not rare:
        return None
    worst = max(rare, key=lambda name: rare[name])
    return Finding(
        "note",
        "Some columns have names that come fewer than five times, which are hardly learned",
        {"columns": len(rare), "most in": worst, "rare names there": rare[worst]},
        "join them into one, such as 'other'",
    )


def check_lengths(n: LengthStats) -> Finding:
    """Check for sequences much longer than the rest."""
    figures: dict[str, Figure] = {"shortest": n.shortest, "median": n.median, "longest": n.longest}
    if n.longest > 4 * n.median:
        title = "A few sequences are far longer than the rest: most of the arithmetic goes into padding"
        return Finding("note", title, figures, f"--max-length {2 * n.median}, with --long truncate or window")
    return Finding("ok", "The sequences have lengths near one another", figures)


CELL_CHECKS = (check_units, check_genes, check_libraries)
COLUMN_CHECKS = (check_columns, check_types, check_missing, check_ids, check_rare)
