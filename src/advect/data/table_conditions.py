"""A column as a condition: what a network is told, and the column again from that."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.types import LENGTH, NULL, Category, Quantity
from advect.data.source import category
from advect.data.table_columns import Categories, Column, Number
from advect.data.table_kinds import read_column
from advect.data.table_scaling import StandardScaling

FEW = 20
"""The most different whole numbers of a condition that is a category."""

EXAMPLES = 64
"""The rows of a quantity that are kept as examples."""


def read_condition(
    series: Any, train: np.ndarray | None, *, categorical: bool = False, continuous: bool = False
) -> tuple[Column, np.ndarray]:
    """A pandas Series as a column fit for :func:`condition_of`, and its values (N,) in table units, NaN where missing.

    Args:
        series: the values.
        train: (N,) bool, the rows to which the scaling is fitted; None for all.
        categorical: take numbers for categories, as whole numbers of at most ``FEW`` values are anyway.
        continuous: take numbers for numbers, however few there are.

    Raises:
        UserError: as :func:`read_column`; or ``continuous`` is asked of what is no number.
    """
    types = optional_import("pandas", "tables").api.types
    if continuous and (not types.is_numeric_dtype(series.dtype) or types.is_bool_dtype(series.dtype)):
        raise UserError(f"continuous_conditions has {series.name!r}, whose values are {series.dtype}; use conditions")
    few = types.is_integer_dtype(series.dtype) and series.nunique() <= FEW
    return read_column(series, train, scaling="standard", categorical=categorical or (few and not continuous))


def condition_of(column: Column, values: np.ndarray, train: np.ndarray) -> tuple[Category | Quantity, np.ndarray]:
    """The condition that a column is, and its values: int64 (N,) or float32 (N, 1), null where missing.

    Args:
        column: a number under standard scaling, or categories.
        values: (N,) in table units, NaN where missing.
        train: (N,) bool, the rows from which frequencies and examples are taken.

    Raises:
        UserError: the column has the name of the condition that sequences have.
    """
    if column.name == LENGTH:
        raise UserError(f"a condition cannot be called {LENGTH!r}, which is that of sequences; rename the column")
    absent = np.isnan(values)
    if isinstance(column, Categories):
        codes = np.where(absent, NULL, values).astype(np.int64)
        return category(codes[train & ~absent], [str(name) for name in column.names]), codes
    if not isinstance(column, Number) or not isinstance(column.scaling, StandardScaling):
        raise UserError(f"column {column.name!r} is not a number under standard scaling; fit it with 'standard'")
    given = values[train & ~absent]
    some = given[np.unique(np.linspace(0, len(given) - 1, min(len(given), EXAMPLES)).astype(np.int64))]
    scaling = column.scaling
    spec = Quantity((column.name,), (scaling.mean,), (scaling.std,), tuple((float(v),) for v in some))
    return spec, ((values - scaling.mean) / scaling.std).astype(np.float32)[:, None]


def column_values(column: Column, cond: Tensor) -> Tensor:
    """The way back: a condition's values (B,) or (B, 1) to table units (B,), float64, NaN where null."""
    if isinstance(column, Number):
        return column.rounded(column.scaling.inverse(cond.double().reshape(-1)))
    return torch.where(cond < 0, torch.nan, cond.double())
