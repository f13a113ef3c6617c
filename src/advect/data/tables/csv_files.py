"""CSV files: separator, header, and columns whose types are inferred from all values."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.data.tables.text import as_series, as_text, infer_text
from advect.data.tables.words import among, text_of
from advect.data.text_files import open_bytes, open_text

logger = logging.getLogger(__name__)

_HEAD = 100
"""Rows that tell the separator."""


def read_csv(pd: Any, file: Path, text: Collection[str], numeric: Collection[str], words: dict[str, Any]) -> Any:
    with readable(file), open_text(file) as lines:
        separator = find_separator(lines)
        names = _header(file, lines, separator)
    fields = _fields(file, separator, names)
    titles = titles_of(names)
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


def _fields(file: Path, separator: str, names: list[str]) -> list[Any]:
    """Fields of each column, Arrow ``ChunkedArray`` (N,) of strings. Raises UserError unless all rows are as long."""
    arrow = optional_import("pyarrow", "tables")
    if separator != " " and not odd_quotes(file, separator):
        try:
            return _arrow_fields(file, separator, len(names))
        except (OSError, arrow.ArrowInvalid):
            pass  # what is wrong is told below, with its line
    columns: list[list[str]] = [[] for _ in names]
    with readable(file), open_text(file) as lines:
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
    if len(names) == 1:
        return names != ["0"]  # as pandas names a column without a name
    ordered = (steps > 0).all() or (steps < 0).all()
    return not (ordered and (len(names) > 7 or all(name.isdecimal() for name in names)))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def require_columns(frame: Any, names: Collection[str], argument: str) -> None:
    if isinstance(names, str):
        raise UserError(f"{argument} must be several names, got the text {names!r}; give ({names!r},)")
    for name in names:
        if name not in frame.columns:
            raise UserError(
                f"{argument} has {name!r}, which is no column{did_you_mean(name, map(str, frame.columns))}"
            )
