"""CSV and Parquet files to data frames and back."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from advect.core.errors import UserError, optional_import
from advect.core.files import write_whole

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


def read_table(path: str | os.PathLike[str], *, text: Collection[str] = ()) -> Any:
    """The pandas DataFrame in a file; its suffix says which kind, and of CSV the separator is found out.

    Args:
        path: ``.parquet`` or ``.pq``, or ``.csv``, ``.tsv`` or ``.txt``, plain or with ``.gz``.
        text: columns of a CSV file to read as text, so that "007" stays what it is.

    Raises:
        UserError: the file is missing, empty, damaged, of another kind, ragged, or names a column twice.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"the table {str(path)!r} does not exist or is not a file; check its name")
    pd = optional_import("pandas", "tables")
    name = file.name.lower()
    if not name.endswith(PARQUET + CSV):
        raise UserError(f"the table {str(path)!r} is neither CSV nor Parquet by its name; end it in .csv or .parquet")
    if not file.stat().st_size:
        raise UserError(f"{file} is empty; give a file with a header and rows")
    if name.endswith(PARQUET):
        optional_import("pyarrow", "tables")
        try:
            return pd.read_parquet(file, engine="pyarrow")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not a readable Parquet file ({_line(error)}); write it again") from error
    return _read_csv(pd, file, text)


def _read_csv(pd: Any, file: Path, text: Collection[str]) -> Any:
    separator = _check_csv(file)
    try:
        frame = pd.read_csv(
            file,
            sep=separator,
            dtype={column: "string" for column in text},
            dtype_backend="numpy_nullable",
            float_precision="round_trip",
            encoding="utf-8-sig",
            index_col=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise UserError(f"{file} is not a readable CSV file ({_line(error)}); mend or write it again") from error
    plain = {"Int64": "int64", "Float64": "float64", "boolean": "bool"}
    for column in frame.columns:
        dtype = str(frame[column].dtype)
        if dtype == "string":
            frame[column] = frame[column].astype(object)
        elif dtype == "Float64" or (dtype in plain and not frame[column].isna().any()):
            frame[column] = frame[column].astype(plain[dtype])
    return frame


def _check_csv(file: Path) -> str:
    """The separator of a CSV file, once each row has been seen to have as many fields as the header."""
    try:
        with (gzip.open if file.suffix.lower() == ".gz" else open)(
            file, "rt", encoding="utf-8-sig", newline=""
        ) as lines:
            header = lines.readline()
            separator = max(",;\t|", key=header.count)
            lines.seek(0)
            rows = csv.reader(lines, delimiter=separator)
            names = next(rows, [])
            twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if twice is not None:
                raise UserError(f"{file} names the column {twice!r} twice; rename one")
            if not any(names):
                raise UserError(f"{file} has no header; write the columns' names into its first line")
            for row in rows:
                if row and len(row) != len(names):  # an empty line is no row
                    raise UserError(
                        f"{file} line {rows.line_num} has {len(row)} fields, the header {len(names)}"
                        f" (separator {separator!r}); mend or remove that line"
                    )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a readable CSV file in UTF-8 ({_line(error)}); mend or convert it") from error
    return separator


def row_count(path: Path) -> int:
    """About how many rows a table has, told without reading their values: line breaks in quotes count, too.

    Raises:
        ImportError, OSError, EOFError, ValueError: the file cannot be read, or pyarrow is not installed for Parquet.
    """
    if path.name.lower().endswith(PARQUET):
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return max(lines - 1, 0)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def write_table(path: str | os.PathLike[str], frame: Any) -> None:
    """Write a pandas DataFrame without its index, whole or not at all; the suffix is that of :func:`read_table`.

    Raises:
        UserError: the suffix is another one, or the folder does not exist.
    """
    file = Path(path).expanduser()
    name = file.name.lower()
    if not name.endswith(PARQUET + CSV):
        raise UserError(f"a table cannot be written to {str(path)!r}; end the name in .csv or .parquet")
    if not file.parent.is_dir():
        raise UserError(f"the folder of {str(path)!r} does not exist; make it first")
    if name.endswith(PARQUET):
        optional_import("pyarrow", "tables")
        write_whole(file, lambda partial: frame.to_parquet(partial, engine="pyarrow", index=False))
        return
    separator = "\t" if ".tsv" in file.suffixes else ","
    compression = "gzip" if name.endswith(".gz") else None
    write_whole(file, lambda partial: frame.to_csv(partial, index=False, sep=separator, compression=compression))
