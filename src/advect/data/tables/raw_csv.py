"""CSV files field by field as they stand: quotes, blanks and line ends stay."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from advect.core.errors import UserError
from advect.data.tables.csv_files import check_header, find_separator, odd_quotes, readable, titles_of
from advect.data.tables.files import table_file
from advect.data.text_files import open_text

_TOKEN = re.compile(r'"(?:[^"]|"")*"|\S+')


class RawCsv(NamedTuple):
    """A CSV file: names of its columns, header and rows (n, K) as they stand, and the line that each row begins in."""

    file: Path
    names: list[str]
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str
    newline: str

    def column(self, name: str) -> list[str]:
        """Contents (n,) of the fields of a column."""
        place = self.names.index(name)
        return [content(row[place]) for row in self.rows]

    def ordered(self, names: Sequence[str]) -> RawCsv:
        """With the columns in another order."""
        places = [self.names.index(name) for name in names]
        rows = [[row[i] for i in places] for row in self.rows]
        return self._replace(names=list(names), header=[self.header[i] for i in places], rows=rows)

    def text(self, rows: Sequence[Sequence[str]]) -> str:
        """The file with other rows."""
        return "".join(self.separator.join(row) + self.newline for row in (self.header, *rows))


def read_raw(path: Path) -> RawCsv:
    """Read a CSV file. Raises UserError as in training: for what is none, and unless all rows have as many fields."""
    file = table_file(path)
    with readable(file), open_text(file) as lines:
        separator = find_separator(lines)
        text = lines.read()
    if separator != " ":
        odd_quotes(file, separator)
    rows, starts, newline = _fields(text, separator)
    if not rows:
        raise UserError(f"{file} is empty; give a file with a header and rows")
    header = rows[0][1:] if separator == " " and rows[0][0] == "#" else rows[0]
    for row, line in zip(rows[1:], starts[1:], strict=True):
        if len(row) != len(header):
            raise UserError(f"{file} line {line} has {len(row)} fields, the header {len(header)}; mend that line")
    names = [content(field) for field in header]
    check_header(file, names, separator)
    return RawCsv(file, titles_of(names), header, rows[1:], starts[1:], separator, newline)


def _fields(text: str, separator: str) -> tuple[list[list[str]], list[int], str]:
    """Fields of each row as they stand, the line of each row, and the first end of a line; empty lines are no rows."""
    ends = re.search(r"\r\n|\n|\r", text)
    newline = ends[0] if ends else "\n"
    if separator == " ":
        lines = text.splitlines()
        rows = [(_TOKEN.findall(line), number) for number, line in enumerate(lines, 1)]
        return [row for row, _ in rows if row], [number for row, number in rows if row], newline
    mark = re.escape(separator)
    field = re.compile(rf'("(?:[^"]|"")*"[^{mark}\r\n]*|[^{mark}\r\n]*)({mark}|\r\n|\n|\r|\Z)')
    found, starts, row, line, start, place = [], [], [], 1, 1, 0
    while place < len(text) or row:
        match = field.match(text, place)
        assert match is not None
        row.append(match[1])
        line += len(re.findall(r"\r\n|\n|\r", match[1]))
        place = match.end()
        if match[2] != separator:
            if row != [""]:
                found.append(row)
                starts.append(start)
            line += 1
            row, start = [], line
    return found, starts, newline


def content(field: str) -> str:
    """What a field says, without its quotes."""
    if not field.startswith('"'):
        return field
    end = re.match(r'"(?:[^"]|"")*"', field)
    return field if end is None else end[0][1:-1].replace('""', '"') + field[end.end() :]


def raw_rows(frame: Any, separator: str) -> list[list[str]]:
    """Fields of a data frame's rows, quoted where they have to be."""
    out = io.StringIO()
    frame.to_csv(out, index=False, header=False, sep=separator, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    single = frame.shape[1] == 1  # whose empty fields are quoted, as an empty line is no row
    rows = _fields(out.getvalue(), separator)[0]
    return [['""'] if single and row == [""] else row for row in rows]
