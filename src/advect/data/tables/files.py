"""Tables in CSV and Parquet files, and samples written as the table was."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write
from advect.data.parquet_columns import PARQUET, image_columns
from advect.data.tables.csv_files import one_line, open_csv, read_csv
from advect.data.text_files import has_returns, open_text, write_rows

logger = logging.getLogger(__name__)

CSV = (".csv", ".tsv", ".txt", ".dat", ".csv.gz", ".tsv.gz", ".txt.gz", ".dat.gz")


def read_table(
    path: str | os.PathLike[str],
    *,
    text: Collection[str] = (),
    numeric: Collection[str] = (),
    missing: Sequence[str] | None = None,
    decimal: str = "auto",
    date_order: str = "auto",
) -> Any:
    """pandas DataFrame of a file; the suffix gives the format, the CSV separator is detected.

    Args:
        path: ``.parquet`` or ``.pq``; or ``.csv``, ``.tsv``, ``.txt`` or ``.dat``, plain or with ``.gz``, whose fields
            are separated by a comma, semicolon, tab, bar, or by blanks.
        text: CSV columns to read as text.
        numeric, missing, decimal, date_order: for CSV, see :func:`advect.data.tables.text.infer_text`.

    ``attrs["forms"]`` holds how CSV columns were written, ``attrs["why"]`` the reasons for their types,
    ``attrs["doubts"]`` questions about words among numbers,
    ``attrs["unnamed"]`` the columns without a name, here "Unnamed: 0" and so on. Named index levels of Parquet become
    columns, listed in ``attrs["index"]``.

    Raises:
        UserError: the file is missing, empty, damaged, ragged, of another kind, or repeats a column name.
    """
    file, pd = table_file(path), optional_import("pandas", "tables")
    if file.name.lower().endswith(PARQUET):
        optional_import("pyarrow", "tables")
        return _read_parquet(pd, file)
    words = {"missing": missing, "decimal": decimal, "date_order": date_order}
    return read_csv(pd, open_csv(file, text, numeric, words))


def table_file(path: str | os.PathLike[str]) -> Path:
    """A CSV or Parquet file by its name. Raises UserError unless it is there and holds something."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"the table {str(path)!r} does not exist or is not a file; check its name")
    if not file.name.lower().endswith(PARQUET + CSV):
        raise UserError(f"the table {str(path)!r} is neither CSV nor Parquet by its name; end it in .csv or .parquet")
    if not file.stat().st_size:
        raise UserError(f"{file} is empty; give a file with a header and rows")
    return file


def _read_parquet(pd: Any, file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def own(kind: Any) -> Any:
        """pandas type for values without a NumPy type or without missing values there."""
        if pa.types.is_integer(kind):
            return pd.array([], dtype=str(kind).replace("uint", "UInt").replace("int", "Int")).dtype
        exact = pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_decimal(kind)
        return pd.ArrowDtype(kind) if exact or pa.types.is_large_string(kind) else None

    try:
        table = parquet.ParquetFile(file).read()
        frame = table.to_pandas(types_mapper=own)
        about = (table.schema.pandas_metadata or {}).get("columns", ())
        backed = {column["name"] for column in about if str(column["numpy_type"]).endswith("[pyarrow]")}
    except Exception as error:  # pandas' notes in the file are believed by Arrow, which fails on others in any way
        raise UserError(f"{file} is not a readable Parquet file ({one_line(error)}); write it again") from error
    names = [name for name in frame.index.names if name is not None]
    if not names and not isinstance(frame.index, pd.RangeIndex):
        logger.info("%s has an index without a name, which is left out", file.name)
    frame = frame.reset_index(names) if names else frame
    for column in frame.columns if not frame.columns.has_duplicates else ():
        dtype = str(frame[column].dtype)
        if column in backed:
            frame[column] = frame[column].astype(pd.ArrowDtype(table.schema.field(column).type))
        elif dtype.startswith(("Int", "UInt")) and not frame[column].isna().any():
            frame[column] = frame[column].astype(dtype.lower())
    frame.attrs = {"index": names}
    return frame


def is_table_file(path: Path) -> bool:
    """Whether a path is a CSV or Parquet file without images."""
    return path.is_file() and path.name.lower().endswith((*CSV, *PARQUET)) and not image_columns(path)


def write_table(
    path: str | os.PathLike[str], frame: Any, *, index: Sequence[str] = (), separator: str | None = None
) -> None:
    """Write a pandas DataFrame without its index, atomically; suffixes as for :func:`read_table`.

    Args:
        index: columns that form the Parquet index.
        separator: of CSV; default a comma, or a tab in ``.tsv``.

    Raises:
        UserError: another suffix, or the folder does not exist.
    """
    file = Path(path).expanduser()
    name = file.name.lower()
    if not name.endswith(PARQUET + CSV):
        raise UserError(f"a table cannot be written to {str(path)!r}; end the name in .csv or .parquet")
    if not file.parent.is_dir():
        raise UserError(f"the folder of {str(path)!r} does not exist; make it first")
    if name.endswith(PARQUET):
        optional_import("pyarrow", "tables")
        whole = frame.set_index(list(index)) if index else frame
        atomic_write(file, lambda partial: whole.to_parquet(partial, engine="pyarrow", index=bool(index)))
        return
    separator = separator or ("\t" if ".tsv" in file.suffixes else ",")
    compression = "gzip" if name.endswith(".gz") else None
    quoting = csv.QUOTE_NONNUMERIC if has_returns(_texts(frame)) else csv.QUOTE_MINIMAL

    def write(partial: Path) -> None:
        frame.to_csv(partial, index=False, sep=separator, compression=compression, quoting=quoting)

    atomic_write(file, write)


def _texts(frame: Any) -> Iterator[object]:
    """Names of the columns of a data frame, and the values of those that may be text."""
    yield from frame.columns
    for name, dtype in frame.dtypes.items():
        yield from frame[name].unique() if dtype.kind not in "biufmM" else ()


class FileStyle(TypedDict):
    """What a file of samples has of the table read.

    ``suffix``, Parquet ``index`` and CSV ``separator`` of the file, and columns ``unnamed`` there.
    """

    suffix: Literal[".csv", ".parquet"]
    index: list[str]
    separator: Literal[",", ";", "\t", "|", " "] | None
    unnamed: list[str]


def style_of(data: Any, attrs: Mapping[str, Any], columns: Collection[str]) -> FileStyle:
    """Style of a path, or of a data frame, read with ``attrs`` as by :func:`read_table`; ``columns`` are used."""
    path = os.fspath(data).lower() if isinstance(data, str | os.PathLike) else ""
    return {
        "suffix": ".parquet" if str(path).endswith(PARQUET) else ".csv",
        "index": [name for name in attrs.get("index", ()) if name in columns],
        "separator": attrs.get("separator"),
        "unnamed": [name for name in attrs.get("unnamed", ()) if name in columns],
    }


def write_in_style(folder: Path, frame: Any, style: FileStyle) -> Path:
    """Write samples as samples.csv or samples.parquet; return the path."""
    file = folder / ("samples" + style["suffix"])
    frame = frame.rename(columns=dict.fromkeys(style["unnamed"], ""))
    write_table(file, frame, index=style["index"], separator=style["separator"])
    return file


def quote_formulas(file: Path, separator: str) -> None:
    """Put "'" before text that a spreadsheet would run as a formula, in the cells of a CSV file with that separator.

    Such text begins with =, +, -, @, a tab or a carriage return; also within a cell, after a mark that another
    separator may be: a spreadsheet may split by its own. Numbers stay as they are; names of columns are cells, too.
    """
    with open_text(file) as lines:
        rows = [list(map(_unlike_formula, row)) for row in csv.reader(lines, delimiter=separator)]
    quoted = any(map(has_returns, rows))
    atomic_write(file, lambda partial: write_rows(partial, rows, separator=separator, quoted=quoted))


_PLAIN_NUMBER = re.compile(r"[+-]?[\d.,\s]*\d[\d.,]*([eE][+-]?\d+)?%?|[+-]?(inf|nan)", re.IGNORECASE)
_ENDS_CELL = re.compile(r"([,;|\t\r\n])")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four as wide letters


def _unlike_formula(cell: str) -> str:
    if _is_plain(cell):
        return cell
    parts = (
        f"'{part}" if part.startswith(_FORMULA) and not _is_plain(part) else part for part in _ENDS_CELL.split(cell)
    )
    return "'" * cell.startswith(("\t", "\r")) + "".join(parts)


def _is_plain(cell: str) -> bool:
    return bool(_PLAIN_NUMBER.fullmatch(cell.strip()))
