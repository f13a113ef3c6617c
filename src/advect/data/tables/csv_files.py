"""CSV files: separator, header, and columns whose types are inferred from all values."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.data.tables.text import Read, as_series, as_text, infer_text
from advect.data.tables.words import among
from advect.data.text_files import open_bytes, open_text

logger = logging.getLogger(__name__)

_HEAD = 100
"""Rows that tell the separator."""


class CsvTable(NamedTuple):
    """A CSV file: names of its columns, its separator, names given to columns without one, and its columns.

    ``columns`` gives pairs of a Series and how it was read, in order, once; what is taken is freed here.
    """

    names: list[str]
    separator: str
    unnamed: list[str]
    columns: Iterator[tuple[Any, Read]]


def open_csv(file: Path, text: Collection[str], numeric: Collection[str], words: Mapping[str, Any]) -> CsvTable:
    """Read a CSV file; arguments and errors as those of :func:`advect.data.tables.files.read_table`."""
    with readable(file), open_text(file) as lines:
        separator = find_separator(lines)
        header = _header(file, lines, separator)
    names = titles_of(header)
    require_columns(names, numeric, "numeric")
    fields = _fields(file, separator, header)

    def columns() -> Iterator[tuple[Any, Read]]:
        why = []
        for column in names:
            own = next(fields)
            if column in text:
                read = as_text(own, among(own, ["", *(words["missing"] or ())]), "as asked")
            else:
                read = infer_text(column, own, numeric=column in numeric, **words)
            del own
            why.append(f"{column} is {read.told}")
            yield as_series(read, column), read
        logger.info("%s: %s", file.name, "; ".join(why))

    return CsvTable(names, separator, [name for name, own in zip(names, header, strict=True) if not own], columns())


def column_names(file: Path) -> list[str]:
    """Names of the columns of a CSV file. Raises UserError for a header without them."""
    with readable(file), open_text(file) as lines:
        return titles_of(_header(file, lines, find_separator(lines)))


def read_csv(pd: Any, table: CsvTable) -> Any:
    """DataFrame of a CSV file, its attributes as :func:`advect.data.tables.files.read_table` tells them."""
    columns, forms, why, doubts = {}, {}, {}, {}
    for series, read in table.columns:
        columns[series.name], why[series.name] = series, read.told
        if read.form:
            forms[series.name] = read.form
        if read.doubt:
            doubts[series.name] = read.doubt
    typed = pd.DataFrame(columns, columns=table.names, copy=False)
    typed.attrs = {"forms": forms, "why": why, "doubts": doubts}
    typed.attrs |= {"separator": table.separator, "unnamed": table.unnamed}
    return typed


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Name the file in errors of reading it."""
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        why = one_line(error)
        raise UserError(f"{file} is not a readable CSV file in UTF-8 ({why}); mend or convert it") from error


def _header(file: Path, lines: IO[str], separator: str) -> list[str]:
    """Names of the columns. Raises UserError as :func:`check_header`."""
    names = next(csv_rows(lines, separator), (["", ""], 0))[0]
    check_header(file, names, separator)
    return names


def check_header(file: Path, names: list[str], separator: str) -> None:
    """Raise UserError where the first row has no names, or one twice."""
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


def titles_of(names: list[str]) -> list[str]:
    """Names of columns; the column i without one is "Unnamed: i"."""
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)]


_WIDE = 1000
"""Columns from which Arrow, which holds some 20 kB of each, takes more memory than reading by rows."""


def _fields(file: Path, separator: str, names: list[str]) -> Iterator[Any]:
    """Fields of each column, Arrow ``ChunkedArray`` (N,) of strings. Raises UserError unless all rows are as long."""
    arrow = optional_import("pyarrow", "tables")
    if separator != " " and not odd_quotes(file, separator) and len(names) <= _WIDE:
        try:
            return _each_once(_arrow_fields(file, separator, len(names)))
        except (OSError, arrow.ArrowInvalid):
            pass  # what is wrong is told below, with its line
    groups = [slice(i, i + _GROUP) for i in range(0, len(names), _GROUP)]
    blocks: list[list[Any]] = [[] for _ in groups]
    with readable(file), open_text(file) as lines:
        rows = _whole_rows(file, lines, separator, len(names))
        while some := list(islice(rows, max(_FIELDS // len(names), 1))):
            for group, own in zip(groups, blocks, strict=True):
                words = [word for row in some for word in row[group]]
                own.append(arrow.array(words, arrow.string(), memory_pool=_pool()))
    return _columns_of(blocks, [len(names[group]) for group in groups])


_GROUP, _FIELDS = 256, 1 << 16
"""Columns whose fields lie together, row by row, and fields that are read before they do."""


def _whole_rows(file: Path, lines: IO[str], separator: str, count: int) -> Iterator[list[str]]:
    """Rows below the header. Raises UserError unless each has ``count`` fields."""
    rows = csv_rows(lines, separator)
    next(rows)
    for row, last in rows:
        if row and len(row) != count:  # an empty line is no row
            raise UserError(
                f"{file} line {last} has {len(row)} fields, the header {count}"
                f" (separator {separator!r}); mend or remove that line, or complete the header"
            )
        if row:
            yield row


def _each_once(columns: list[Any]) -> Iterator[Any]:
    columns.reverse()
    while columns:
        yield columns.pop()


def _columns_of(blocks: list[list[Any]], widths: list[int]) -> Iterator[Any]:
    """Columns, Arrow ``ChunkedArray`` (N,), of blocks of rows of each group of ``widths`` columns."""
    arrow = optional_import("pyarrow", "tables")
    for own, width in zip(_each_once(blocks), widths, strict=True):
        parts = _joined(own)
        own.clear()
        places = [np.arange(0, len(part), width) for part in parts]
        for i in range(width):
            columns = [part.take(arrow.array(place + i)) for part, place in zip(parts, places, strict=True)]
            yield arrow.chunked_array(columns, arrow.string())


def _joined(blocks: list[Any]) -> list[Any]:
    """Arrays of strings as fewer ones, of less than the 2 GiB that one can hold."""
    ends = np.cumsum([block.nbytes for block in blocks]) // _JOINED
    cuts = [0, *(np.flatnonzero(np.diff(ends)) + 1), len(blocks)]
    concat = optional_import("pyarrow", "tables").concat_arrays
    return [concat(blocks[i:j], memory_pool=_pool()) for i, j in pairwise(cuts) if j > i]


_JOINED = 1 << 28


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
    with open_bytes(file) as content, reader.open_csv(content, **options, memory_pool=_pool()) as blocks:
        return blocks.read_all().columns


def _pool() -> Any:
    """Arrow's pool that gives memory back as columns are freed, which others keep."""
    arrow = optional_import("pyarrow", "tables")
    try:
        return arrow.jemalloc_memory_pool()
    except NotImplementedError:
        return arrow.default_memory_pool()


def odd_quotes(file: Path, separator: str) -> bool:
    """Refuse a file that ends in a quoted field, as one that was cut off does; else whether its quotes are odd."""
    with readable(file):
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

    def head(separator: str) -> tuple[int, list[list[str]]]:
        """Number of fields, 0 unless that of all rows, and the first two rows."""
        lines.seek(0)
        counts, first = set(), []
        try:
            for row in filter(None, (row for row, _ in islice(csv_rows(lines, separator), _HEAD))):
                counts.add(len(row))
                first += [row] if len(first) < 2 else []
        except csv.Error:
            return 0, []
        return counts.pop() if len(counts) == 1 else 0, first

    widths = {mark: head(mark)[0] for mark in ",;\t|"}
    widths[" "], blanks = head(" ")
    lines.seek(0)
    header = lines.readline()
    lines.seek(0)
    if max(widths[mark] for mark in ",;\t|") > 1:
        return max(",;\t|", key=widths.__getitem__)
    if any(mark in header for mark in ",;\t|"):
        return max(",;\t|", key=header.count)
    first, second = [*blanks, [], []][:2]
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
    if len(names) == 1:
        return names != ["0"]  # as pandas names a column without a name
    ordered = (steps > 0).all() or (steps < 0).all()
    return not (ordered and (len(names) > 7 or all(name.isdecimal() for name in names)))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def require_columns(columns: Collection[Any], names: Collection[str], argument: str) -> None:
    """Raise UserError unless all ``names`` are among the columns'."""
    if isinstance(names, str):
        raise UserError(f"{argument} must be several names, got the text {names!r}; give ({names!r},)")
    for name in names:
        if name not in columns:
            raise UserError(f"{argument} has {name!r}, which is no column{did_you_mean(name, map(str, columns))}")
