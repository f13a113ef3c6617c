"""One's own tables: columns of any types in a CSV or Parquet file or a pandas DataFrame, and samples as such again."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.files import atomic_write
from advect.core.registry import register
from advect.core.types import Conditions, DataSpec
from advect.data.base import ArraySplit, Dataset, Detected, Preview
from advect.data.repeats import split_rows
from advect.data.tables.columns import Column, column_from_config
from advect.data.tables.infer_columns import column_values, condition_of, read_column, read_condition
from advect.data.tables.scaling import require_scaling
from advect.data.tables.transform import TableTransform
from advect.data.transforms import transform_from_config

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


def is_table_file(path: Path) -> bool:
    """Whether a path is a CSV or Parquet file that holds no images."""
    return path.is_file() and path.name.lower().endswith((*CSV, *PARQUET)) and not image_columns(path)


def parquet_fields(path: Path) -> list[Any]:
    """The columns of a Parquet file, or of the first one in a folder; none where there is no such file."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))[:1]
    if not files or not files[0].name.lower().endswith(PARQUET):
        return []
    try:
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(files[0]))
    except (ImportError, OSError, ValueError):
        return []


def image_columns(path: Path) -> list[str]:
    """The columns of Parquet files that can hold images: bytes, or a struct with ``bytes``."""
    return [
        field.name
        for field in parquet_fields(path)
        if str(field.type) in ("binary", "large_binary") or f"{field.name}.bytes" in {c.name for c in field.flatten()}
    ]


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
        atomic_write(file, lambda partial: frame.to_parquet(partial, engine="pyarrow", index=False))
        return
    separator = "\t" if ".tsv" in file.suffixes else ","
    compression = "gzip" if name.endswith(".gz") else None
    atomic_write(file, lambda partial: frame.to_csv(partial, index=False, sep=separator, compression=compression))


class TableMetadata(TypedDict):
    """What :func:`frame_of` makes data frames from without the data, as JSON.

    ``suffix`` of the file samples are written to; ``order`` of all columns; the configurations of the transform and of
    the columns that are conditions.
    """

    suffix: str
    order: list[str]
    transform: dict[str, Any]
    conditions: list[dict[str, Any]]


@register("table")
class Table(Dataset):
    """Rows of a table as vectors (D,): numbers scaled, categories as codes of +-1, a dimension more where values miss.

    Numbers, whole numbers, booleans, categories, text, times and missing values come back as they were. Times in CSV
    are ISO 8601. Copies of a row are never on both sides of the split, while rows that are equal by chance, and each
    value of a column of few, are on both. A constant column is not learned but comes back.

    Args:
        data: the file (see :func:`read_table`) or a pandas DataFrame.
        conditions: columns that the model is told instead of learning them: numbers become a ``Quantity``, others and
            whole numbers of at most ``FEW`` values a ``Category``; a missing value is null.
        continuous_conditions: more such columns, of numbers, that are a ``Quantity`` however few values they have.
        scaling: of numbers, "quantile" (to standard normal) or "standard" (mean 0, deviation 1).
        drop: columns to leave out.
        categorical: columns of numbers or text whose values are names of something.
        held_out: the share of the rows, drawn at random, that is kept for measuring, in [0, 1).
        seed: of the split.
        name: what reports call the data; by default the file's name.

    Raises:
        UserError: the file or a column cannot be used, or an argument; it says which and why.
    """

    place: ClassVar[str | None] = "the CSV or Parquet file"
    usual_preset: ClassVar[str | None] = "table"
    part_given: ClassVar[tuple[str, ...]] = ("seed", "name")

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(60, "a CSV or Parquet table", "table") if is_table_file(path) else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        return Preview("a table of one row a sample", samples=row_count(path))

    def __init__(
        self,
        data: Any,
        *,
        conditions: Sequence[str] = (),
        continuous_conditions: Sequence[str] = (),
        scaling: Literal["quantile", "standard"] = "quantile",
        drop: Sequence[str] = (),
        categorical: Sequence[str] = (),
        held_out: float = 0.1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        require_scaling(scaling)
        frame = _frame(data, drop, categorical)
        wanted = {"conditions": conditions, "continuous_conditions": continuous_conditions, "categorical": categorical}
        for argument, names in wanted.items():
            _require_columns(frame, names, argument)
        told = [column for column in frame.columns if column in {*conditions, *continuous_conditions}]

        def read(train: np.ndarray | None) -> dict[str, tuple[Column, np.ndarray]]:
            return {
                c: read_condition(frame[c], train, categorical=c in categorical, continuous=c in continuous_conditions)
                if c in told
                else read_column(frame[c], train, scaling=scaling, categorical=c in categorical)
                for c in frame.columns
            }

        # The split needs the values and the scalings need the split.
        values = np.stack([v for _, v in read(None).values()], 1)
        train, rest = split_rows(values, held_out, seed=seed)
        is_train = np.zeros(len(values), bool)
        is_train[train] = True
        columns = read(is_train)

        path = os.fspath(data) if isinstance(data, str | os.PathLike) else ""
        self._suffix = ".parquet" if str(path).lower().endswith(PARQUET) else ".csv"
        self._order = list(columns)
        self._told = [columns[c][0] for c in told]
        transform = TableTransform([column for c, (column, _) in columns.items() if c not in told])
        learned = [i for i, c in enumerate(columns) if c not in told]
        x = transform.forward(torch.from_numpy(values[:, learned])).numpy()
        specs = {c: condition_of(*columns[c], is_train) for c in told}
        cond = {c: v for c, (_, v) in specs.items()}
        super().__init__(
            name=name or (Path(data).name if isinstance(data, str | os.PathLike) else "table"),
            spec=DataSpec(x.shape[1:], "table", {c: spec for c, (spec, _) in specs.items()}),
            transform=transform,
            train=ArraySplit(x, cond, rows=train),
            held_out=ArraySplit(x, cond, rows=rest),
            fingerprint=_fingerprint(values, train, transform, self._told),
        )

    @property
    def metadata(self) -> TableMetadata:
        return {
            "suffix": self._suffix,
            "order": self._order,
            "transform": self.transform.to_config(),
            "conditions": [column.to_config() for column in self._told],
        }


def frame_of(x: Tensor, cond: Conditions | None, facts: TableMetadata) -> Any:
    """Samples as a pandas DataFrame like the one trained on, the conditions at their places.

    Args:
        x: (B, K) in table units, what the transform's ``inverse`` gives.
        cond: as networks are given them; a column whose condition is null or not there comes back as missing.
        facts: ``Table.metadata``.

    Raises:
        UserError: x has not the table's columns, or pandas is not installed.
    """
    pd = optional_import("pandas", "tables")
    transform = transform_from_config(facts["transform"])
    assert isinstance(transform, TableTransform)
    if x.ndim != 2 or x.shape[1] != len(transform.columns):
        raise UserError(f"x must be (B, {len(transform.columns)}) in table units, got {tuple(x.shape)}; apply inverse")
    parts = [transform.to_frame(x)]
    for column in map(column_from_config, facts["conditions"]):
        given = (cond or {}).get(column.name)
        values = torch.full((len(x),), torch.nan) if given is None else column_values(column, given.detach().cpu())
        parts.append(column.to_series(values.double().numpy()))
    return pd.concat(parts, axis=1)[list(facts["order"])]


def _frame(data: Any, drop: Sequence[str], categorical: Sequence[str]) -> Any:
    pd = optional_import("pandas", "tables")
    if isinstance(data, str | os.PathLike):
        frame = read_table(data, text=categorical)
    elif isinstance(data, pd.DataFrame):
        frame = data
    else:
        raise UserError(f"a table must be a path or a pandas DataFrame, got {type(data).__name__}; convert it")
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"the table has the column {twice!r} twice; rename one")
    _require_columns(frame, drop, "drop")
    frame = frame.drop(columns=list(drop))
    if not frame.size:
        raise UserError(f"the table is empty, its shape is {frame.shape}; give at least one row and one column")
    return frame


def _require_columns(frame: Any, names: Sequence[str], argument: str) -> None:
    if isinstance(names, str):
        raise UserError(f"{argument} must be several names, got the text {names!r}; give ({names!r},)")
    for name in names:
        if name not in frame.columns:
            raise UserError(
                f"{argument} has {name!r}, which is no column{did_you_mean(name, map(str, frame.columns))}"
            )


def _fingerprint(values: np.ndarray, train: np.ndarray, transform: TableTransform, told: list[Column]) -> str:
    """sha256, in hexadecimal, of the values, the split and what the columns mean, but not of their pandas types."""
    meanings = [column.to_config() for column in (*transform.columns, *told)]
    for meaning in meanings:
        for key in ("dtype", "category_dtype"):
            meaning.pop(key, None)
    digest = hashlib.sha256(json.dumps(meanings, sort_keys=True).encode())
    digest.update(repr(values.shape).encode() + np.ascontiguousarray(values + 0.0).tobytes() + train.tobytes())
    return digest.hexdigest()
