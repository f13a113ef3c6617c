"""Verdicts on files of cells, tables and arrays as they lie on the disk, before a source is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError, optional_import
from advect.data import read_table
from advect.data.cells.matrix import CellMatrix, stored_matrix
from advect.doctor.data import places
from advect.doctor.report import Figure, Finding


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


@dataclass(frozen=True, kw_only=True)
class CellFigures:
    """Figures of a matrix of cells by genes, of which ``looked`` cells were looked at.

    Attributes:
        lowest, highest, whole: the range of the values, and whether all are whole numbers.
        infinite: cells with NaN or infinite values.
        silent: genes that no cell looked at has.
        empty: cells in which no gene is found.
        libraries: the 5th, 50th and 95th percentile of a cell's sum.
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
class ColumnFigures:
    """A column of a table: its type, its share of missing values, how many different values it has, of ``rows``.

    ``named`` says that its values are names, not numbers; ``rare`` counts the names that come fewer than five times.
    """

    name: str
    type: str
    rows: int
    missing: float
    distinct: int
    named: bool
    rare: int = 0


@dataclass(frozen=True, kw_only=True)
class ArrayFigures:
    """An array in a file: its shape and type, and rows that are not finite, of ``looked``."""

    shape: tuple[int, ...]
    dtype: str
    looked: int
    infinite: int


def check_array(a: ArrayFigures) -> Finding:
    """NaN and infinite values in a file."""
    figures: dict[str, Figure] = {
        "shape": "x".join(map(str, a.shape)),
        "type": a.dtype,
        "rows looked at": a.looked,
        "not finite": a.infinite,
    }
    if a.infinite:
        advice = "remove those rows or fill them in"
        return Finding("problem", "The array has NaN or infinite values", figures, advice)
    return Finding("ok", "The array is finite", figures)


def check_units(c: CellFigures) -> Finding:
    """Whether the values are raw counts, or logarithms already."""
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


def check_genes(c: CellFigures) -> Finding:
    """Genes that are never found, and how many there are for so many cells."""
    figures: dict[str, Figure] = {"genes": c.genes, "never found": c.silent, "cells looked at": c.looked}
    if c.genes > 5000:
        title = "There are many genes, most of which vary little"
        return Finding("note", title, figures, "--highly-variable 2000, or --pca 50")
    if c.silent > 0.01 * c.genes:
        return Finding("note", "Some genes are found in no cell", figures, "--highly-variable leaves them out")
    return Finding("ok", "Nearly all genes are found in some cell", figures)


def check_libraries(c: CellFigures) -> Finding | None:
    """How much the cells' sums differ."""
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


def check_columns(columns: list[ColumnFigures]) -> Finding | None:
    """What types of columns there are."""
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


def check_missing(columns: list[ColumnFigures]) -> Finding | None:
    """Columns with missing values."""
    gone = [c.name for c in columns if c.missing == 1]
    worst = max(columns, key=lambda c: c.missing, default=None)
    if worst is None or worst.missing == 0:
        return Finding("ok", "No value is missing", {"columns": len(columns)})
    figures: dict[str, Figure] = {
        "columns with missing values": sum(c.missing > 0 for c in columns),
        "most in": worst.name,
        "its share": worst.missing,
    }
    if gone:
        words = ", ".join(gone[:5])
        return Finding("problem", "A column has no values at all", {**figures, "empty": words}, f"--drop {words}")
    if worst.missing > 0.5:
        return Finding("note", "A column misses most of its values", figures, f"--drop {worst.name}")
    return Finding("ok", "Values are missing; missingness is learned with the rest", figures)


def check_ids(columns: list[ColumnFigures]) -> Finding | None:
    """Columns that tell rows apart instead of saying something of them."""
    ids = looks_like_id(columns)
    if not ids:
        return None
    figures: dict[str, Figure] = {"columns": ", ".join(ids[:5]), "rows": columns[0].rows}
    title = "A column has another value in each row, as a name or a number of rows has"
    return Finding("note", title, figures, f"--drop {' '.join(ids[:5])}")


def looks_like_id(columns: list[ColumnFigures]) -> list[str]:
    """The columns with another name, or another whole number, in each row."""
    return [
        c.name
        for c in columns
        if c.rows > 20 and c.missing == 0 and c.distinct == c.rows and (c.named or c.type.lower().startswith("int"))
    ]


def check_rare(columns: list[ColumnFigures]) -> Finding | None:
    """Names that come fewer than five times, and constant columns."""
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


CELL_CHECKS = (check_units, check_genes, check_libraries)
COLUMN_CHECKS = (check_columns, check_missing, check_ids, check_rare)
