"""One's own tables: columns of any types in a CSV or Parquet file or a pandas DataFrame, and samples as such again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.types import Conditions, DataSpec
from advect.data.memory import MemorySplit, equal_rows, split_groups
from advect.data.source import Source
from advect.data.table_columns import Column, column_from_config
from advect.data.table_conditions import column_values, condition_of, read_condition
from advect.data.table_files import PARQUET, read_table
from advect.data.table_kinds import read_column
from advect.data.table_scaling import require_scaling
from advect.data.table_transform import TableTransform
from advect.data.transforms import transform_from_config


class Table(Source):
    """Rows of a table as vectors (D,): numbers scaled, categories as codes of +-1, a dimension more where values miss.

    Numbers, whole numbers, booleans, categories, text, times and missing values come back as they were. Times in CSV
    are ISO 8601. Equal rows are never on both sides of the split. A constant column is not learned but comes back.

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

    def __init__(
        self,
        data: Any,
        *,
        conditions: Sequence[str] = (),
        continuous_conditions: Sequence[str] = (),
        scaling: str = "quantile",
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
        train, rest = split_groups(equal_rows(values), held_out, seed=seed)
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
            spec=DataSpec(x.shape[1:], "vector", {c: spec for c, (spec, _) in specs.items()}),
            transform=transform,
            train=MemorySplit(x[train], {c: v[train] for c, v in cond.items()}),
            held_out=MemorySplit(x[rest], {c: v[rest] for c, v in cond.items()}),
            fingerprint=_fingerprint(values, train, transform, self._told),
        )

    def facts(self) -> dict[str, Any]:
        """A JSON object from which :func:`frame_of` makes data frames without the data."""
        return {
            "kind": "table",
            "suffix": self._suffix,
            "order": self._order,
            "transform": self.transform.to_config(),
            "conditions": [column.to_config() for column in self._told],
        }


def frame_of(x: Tensor, cond: Conditions | None, facts: Mapping[str, Any]) -> Any:
    """Samples as a pandas DataFrame like the one trained on, the conditions at their places.

    Args:
        x: (B, K) in table units, what the transform's ``inverse`` gives.
        cond: as networks are given them; a column whose condition is null or not there comes back as missing.
        facts: what :meth:`Table.facts` said.

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
