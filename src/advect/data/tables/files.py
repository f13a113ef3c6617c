"""Tables in CSV and Parquet files; CSV column types are inferred from all values."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.files import atomic_write
from advect.data.tables.text import as_series, as_text, infer_text
from advect.data.tables.words import among, text_of
from advect.data.text_files import open_bytes
from advect.data.text_files import open_text as open_text

logger = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".txt", ".dat", ".csv.gz", ".tsv.gz", ".txt.gz", ".dat.gz")

_HEAD = 100
"""Rows that tell the separator."""


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
        return _read_parquet(pd, file)
    words = {"missing": missing, "decimal": decimal, "date_order": date_order}
    return _read_csv(pd, file, text, numeric, words)


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
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a readable Parquet file ({_line(error)}); write it again") from error
    names = [name for name in frame.index.names if name is not None]
    if not names and not isinstance(frame.index, pd.RangeIndex):
        logger.info("%s has an index without a name, which is left out", file.name)
    frame = frame.reset_index(names) if names else frame
    about = (table.schema.pandas_metadata or {}).get("columns", ())
    backed = {column["name"] for column in about if str(column["numpy_type"]).endswith("[pyarrow]")}
    for column in frame.columns if not frame.columns.has_duplicates else ():
        dtype = str(frame[column].dtype)
        if column in backed:
            frame[column] = frame[column].astype(pd.ArrowDtype(table.schema.field(column).type))
        elif dtype.startswith(("Int", "UInt")) and not frame[column].isna().any():
            frame[column] = frame[column].astype(dtype.lower())
    frame.attrs = {"index": names}
    return frame


def _read_csv(pd: Any, file: Path, text: Collection[str], numeric: Collection[str], words: dict[str, Any]) -> Any:
    with _readable(file), open_text(file) as lines:
        separator = find_separator(lines)
        names = _header(file, lines, separator)
    fields = _fields(file, separator, names)
    titles = _titles(names)
    require_columns(pd.DataFrame(columns=titles), numeric, "numeric")
    columns, forms, why, doubts = {}, {}, {}, {}
    for column in titles:
        own = fields.pop(0)  # freed as soon as it is typed
        if column in text:
            read = as_text(own, among(own, ["", *(words["missing"] or ())]), "as asked")
        else:
            read = infer_text(column, own, numeric=column in numeric, **words)
        del own
        columns[column] = as_series(read, column)
        why[column] = f"{read.kind} ({read.why})"
        if read.form:
            forms[column] = read.form
        if read.doubt:
            doubts[column] = read.doubt
    typed = pd.DataFrame(columns, columns=titles, copy=False)
    unnamed = [column for column, name in zip(titles, names, strict=True) if not name]
    typed.attrs = {"forms": forms, "why": why, "doubts": doubts, "separator": separator, "unnamed": unnamed}
    logger.info("%s: %s", file.name, "; ".join(f"{column} is {reason}" for column, reason in why.items()))
    return typed


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Name the file in errors of reading it."""
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a readable CSV file in UTF-8 ({_line(error)}); mend or convert it") from error


def _header(file: Path, lines: IO[str], separator: str) -> list[str]:
    """Names of the columns. Raises UserError where the first row has none, or one twice."""
    names = next(csv_rows(lines, separator), (["", ""], 0))[0]
    if _is_data(names):
        raise UserError(
            f"{file} begins with a row of numbers ({separator.join(names[:3])}), which would be the columns'"
            " names; write names into a line before it, or save the numbers as .npy"
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{file} names the column {twice!r} twice; rename one")
    if not any(names):
        raise UserError(f"{file} has no header; write the columns' names into its first line")
    return names


def _titles(names: list[str]) -> list[str]:
    """Names of columns; the column i without one is "Unnamed: i"."""
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)]


def _fields(file: Path, separator: str, names: list[str]) -> list[Any]:
    """Fields of each column, Arrow ``ChunkedArray`` (N,) of strings. Raises UserError unless all rows are as long."""
    arrow = optional_import("pyarrow", "tables")
    if separator != " " and not _odd_quotes(file, separator):
        try:
            return _arrow_fields(file, separator, len(names))
        except (OSError, arrow.ArrowInvalid):
            pass  # what is wrong is told below, with its line
    columns: list[list[str]] = [[] for _ in names]
    with _readable(file), open_text(file) as lines:
        rows = csv_rows(lines, separator)
        next(rows)
        for row, last in rows:
            if row and len(row) != len(names):  # an empty line is no row
                raise UserError(
                    f"{file} line {last} has {len(row)} fields, the header {len(names)}"
                    f" (separator {separator!r}); mend or remove that line, or complete the header"
                )
            for column, word in zip(columns, row, strict=False):
                column.append(word)
    return [text_of(column) for column in columns]


_BLOCK = 1 << 22


def _arrow_fields(file: Path, separator: str, count: int) -> list[Any]:
    arrow, reader = optional_import("pyarrow", "tables"), optional_import("pyarrow.csv", "tables")
    titles = [str(i) for i in range(count)]
    block = min(max(_BLOCK, 200 * count), 2**31 - 1)
    options = {
        "read_options": reader.ReadOptions(
            use_threads=False, block_size=block, skip_rows_after_names=1, column_names=titles
        ),
        "parse_options": reader.ParseOptions(delimiter=separator, newlines_in_values=True),
        "convert_options": reader.ConvertOptions(
            column_types=dict.fromkeys(titles, arrow.string()), strings_can_be_null=False
        ),
    }
    try:  # it gives memory back column by column, which others keep
        pool = arrow.jemalloc_memory_pool()
    except NotImplementedError:
        pool = arrow.default_memory_pool()
    with open_bytes(file) as content, reader.open_csv(content, **options, memory_pool=pool) as blocks:
        return blocks.read_all().columns


def _odd_quotes(file: Path, separator: str) -> bool:
    """Refuse a file that ends in a quoted field, as one that was cut off does; else whether its quotes are odd."""
    with _readable(file):
        with open_bytes(file) as content:
            if not sum(block.count(b'"') for block in iter(lambda: content.read(_BLOCK), b"")) % 2:
                return False
        with open_text(file) as lines:
            try:
                for _ in csv.reader(lines, delimiter=separator, strict=True):
                    pass
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise UserError(
                        f"{file} ends within a field in quotes, as if it were cut off; mend or write it again"
                    ) from None
    return True


_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(\S+)')


def csv_rows(lines: IO[str], separator: str) -> Iterator[tuple[list[str], int]]:
    """Rows of a CSV file and the number of their last line; " " separates by blanks and tabs, however many.

    A header after "#", as NumPy writes it, is without that.
    """
    if separator != " ":
        rows = csv.reader(lines, delimiter=separator)
        yield from ((row, rows.line_num) for row in rows)
        return
    for number, line in enumerate(lines, 1):
        row = [token[1] or token[0].replace('""', '"') for token in _TOKEN.findall(line)]
        yield row[1:] if number == 1 and row[:1] == ["#"] else row, number


def find_separator(lines: IO[str]) -> str:
    """Separator of a CSV file, from its first rows; " " for blanks and tabs. Leaves the file at its start.

    The one that gives most fields, as many in each row; else the commonest of the header.
    """

    def head(separator: str) -> list[list[str]]:
        lines.seek(0)
        try:
            return [row for row, _ in islice(csv_rows(lines, separator), _HEAD) if row]
        except csv.Error:
            return []

    heads = {mark: head(mark) for mark in (*",;\t|", " ")}
    widths = {mark: len(rows[0]) if len({*map(len, rows)}) == 1 else 0 for mark, rows in heads.items()}
    lines.seek(0)
    header = lines.readline()
    lines.seek(0)
    if max(widths[mark] for mark in ",;\t|") > 1:
        return max(",;\t|", key=widths.__getitem__)
    if any(mark in header for mark in ",;\t|"):
        return max(",;\t|", key=header.count)
    first, second = [*heads[" "], [], []][:2]
    numbers = sum(map(_is_number, second or first))
    alike = widths[" "] > 1 and 2 * numbers >= len(second or first)
    return " " if alike or (len(first) > 1 and 1 < len(second) == numbers) else ","


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", word))


def _is_data(names: list[str]) -> bool:
    """Whether a first row is numbers that are no names, as years and wavelengths in order are."""
    if not names or not all(map(_is_number, names)):
        return False
    steps = np.diff([float(name.replace(",", ".")) for name in names])
    ordered = (steps > 0).all() or (steps < 0).all()
    return not (ordered and (len(names) > 7 or all(name.isdecimal() for name in names)))


def is_table_file(path: Path) -> bool:
    """Whether a path is a CSV or Parquet file without images."""
    return path.is_file() and path.name.lower().endswith((*CSV, *PARQUET)) and not image_columns(path)


def parquet_fields(path: Path) -> list[Any]:
    """Fields of a Parquet file, or of the first in a folder; empty if there is none."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))[:1]
    if not files or not files[0].name.lower().endswith(PARQUET):
        return []
    try:
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(files[0]))
    except (ImportError, OSError, ValueError):
        return []


def image_columns(path: Path) -> list[str]:
    """Columns of Parquet files that can hold images: bytes, or a struct with ``bytes``."""
    return [
        field.name
        for field in parquet_fields(path)
        if str(field.type) in ("binary", "large_binary") or f"{field.name}.bytes" in {c.name for c in field.flatten()}
    ]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


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
    atomic_write(file, lambda partial: frame.to_csv(partial, index=False, sep=separator, compression=compression))


class FileStyle(TypedDict):
    """What a file of samples has of the table read.

    ``suffix``, Parquet ``index`` and CSV ``separator`` of the file, and columns ``unnamed`` there.
    """

    suffix: str
    index: list[str]
    separator: str | None
    unnamed: list[str]


def style_of(data: Any, frame: Any, columns: Collection[str]) -> FileStyle:
    """Style of a path, or of a data frame, read as ``frame``, of which ``columns`` are used."""
    path = os.fspath(data).lower() if isinstance(data, str | os.PathLike) else ""
    return {
        "suffix": ".parquet" if str(path).endswith(PARQUET) else ".csv",
        "index": [name for name in frame.attrs.get("index", ()) if name in columns],
        "separator": frame.attrs.get("separator"),
        "unnamed": [name for name in frame.attrs.get("unnamed", ()) if name in columns],
    }


def write_in_style(folder: Path, frame: Any, style: FileStyle) -> Path:
    """Write samples as samples.csv or samples.parquet; return the path."""
    file = folder / ("samples" + style["suffix"])
    frame = frame.rename(columns=dict.fromkeys(style["unnamed"], ""))
    write_table(file, frame, index=style["index"], separator=style["separator"])
    return file


def require_columns(frame: Any, names: Collection[str], argument: str) -> None:
    if isinstance(names, str):
        raise UserError(f"{argument} must be several names, got the text {names!r}; give ({names!r},)")
    for name in names:
        if name not in frame.columns:
            raise UserError(
                f"{argument} has {name!r}, which is no column{did_you_mean(name, map(str, frame.columns))}"
            )


def quote_formulas(file: Path) -> None:
    """Put "'" before the cells of a CSV file that a spreadsheet would run as formulas: text after =, +, -, @ or a tab.

    Numbers stay as they are; the names of columns are cells, too.
    """
    with open_text(file) as lines:
        separator = find_separator(lines)
        rows = [list(map(_unlike_formula, row)) for row in csv.reader(lines, delimiter=separator)]

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, delimiter=separator, lineterminator="\n").writerows(rows)

    atomic_write(file, write)


_PLAIN_NUMBER = re.compile(r"[+-]?[\d.,\s]*\d[\d.,]*([eE][+-]?\d+)?%?|[+-]?(inf|nan)", re.IGNORECASE)


def _unlike_formula(cell: str) -> str:
    formula = cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _PLAIN_NUMBER.fullmatch(cell.strip())
    return f"'{cell}" if formula else cell
