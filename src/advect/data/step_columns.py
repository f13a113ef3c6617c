"""Whether a table has one row a step of sequences, told from its columns' names and its first rows."""

from __future__ import annotations

import csv
import gzip
from itertools import islice
from pathlib import Path

from advect.data.table_files import PARQUET

_IDS = ("sequence_id", "series_id", "trajectory_id", "unique_id", "seq_id", "sequence", "series", "trajectory", "id")
_MORE_IDS = ("patient", "subject", "animal", "track", "individual", "unit")
_ORDERS = ("step", "time", "t", "timestamp", "datetime", "date", "order", "frame")
_ROWS = 1000


def step_columns(path: Path) -> tuple[str, str] | None:
    """The columns that tell a table's sequences apart and order their steps; None where it has one row a sample.

    They are known by usual names, and values of the first must repeat within the first rows.
    """
    try:
        names, rows = _parquet_head(path) if path.name.lower().endswith(PARQUET) else _csv_head(path)
    except (ImportError, OSError, EOFError, ValueError, csv.Error):
        return None  # whoever reads the table says what is wrong with it
    lower = [name.lower() for name in names]
    more = [name for name in lower if name.endswith("_id") or name in _MORE_IDS]
    key = next((lower.index(name) for name in (*_IDS, *more) if name in lower), None)
    order = next((lower.index(name) for name in _ORDERS if name in lower), None)
    if key is None or order is None:
        return None
    keys = [row[key] for row in rows if len(row) > key]
    return (names[key], names[order]) if len(set(keys)) <= len(keys) / 1.5 else None


def _csv_head(path: Path) -> tuple[list[str], list[list[str]]]:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        lines.seek(0)
        rows = csv.reader(lines, delimiter=max(",;\t|", key=header.count))
        return next(rows, []), list(islice(rows, _ROWS))


def _parquet_head(path: Path) -> tuple[list[str], list[list[str]]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        head = next(file.iter_batches(_ROWS), None)
        names = list(map(str, file.schema_arrow.names))
        rows = [] if head is None else [[str(v) for v in row.values()] for row in head.to_pylist()]
        return names, rows
