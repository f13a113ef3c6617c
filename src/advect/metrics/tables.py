"""Tables as metrics see them, and as classifiers do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.statistics import CONDITION, VALUES, SampleStatistics

if TYPE_CHECKING:
    from advect.metrics.base import EvalContext


@dataclass(frozen=True)
class Table:
    """Rows ``values`` (N, K) float64: numbers, codes of categories, and NaN for missing values.

    Raises UserError for another shape, infinite values, and no row.
    """

    values: Tensor
    categorical: Sequence[bool]
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        x, k = self.values, len(self.categorical)
        if x.ndim != 2 or not len(x) or x.shape[1] != k:
            raise UserError(f"values must be (N, {k}), a column for each of categorical, got {tuple(x.shape)}")
        infinite = x.isinf().any(0)
        if infinite.any():
            raise UserError(f"values are infinite in column {int(infinite.int().argmax())}; leave those rows out")
        object.__setattr__(self, "values", x.detach().cpu().double())

    def rows(self, limit: int) -> Table:
        """The first rows."""
        return Table(self.values[:limit], self.categorical, self.names)

    def without(self, k: int) -> Table:
        """All columns but number k."""
        rest = [i for i in range(len(self.categorical)) if i != k]
        names = [self.names[i] for i in rest] if self.names else ()
        return Table(self.values[:, rest], [self.categorical[i] for i in rest], names)


def check_table(x: Table, y: Table) -> None:
    """Raise UserError unless both have the same columns."""
    if list(x.categorical) != list(y.categorical):
        raise UserError("x and y must have the same columns, of the same kinds; compare one table's rows")


def table_of(x: SampleStatistics, context: EvalContext) -> Table:
    """The columns of stored rows, and the categories that they were asked to have."""
    told = [x.rows[CONDITION + name].double() for name in context.categories]
    told = [torch.where(codes < 0, torch.nan, codes)[:, None] for codes in told]
    names = (*context.column_names, *context.categories)
    return Table(torch.cat([x.rows[VALUES].double(), *told], 1), (*context.categorical, *(True for _ in told)), names)


LARGEST = 1e30
"""Largest scaled number that classifiers get: some compute in float32."""


def encoder(categorical: Sequence[bool]) -> Any:
    """Scikit-learn transformer of :func:`within_one` rows to numbers: 0 and 1 for each category that occurs, means for
    missing numbers, robust scales.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, RobustScaler

    kinds = [[k for k, one in enumerate(categorical) if one == kind] for kind in (False, True)]
    cut = FunctionTransformer(np.clip, kw_args={"a_min": -LARGEST, "a_max": LARGEST})
    numbers = make_pipeline(SimpleImputer(keep_empty_features=True), RobustScaler(), cut)
    return make_column_transformer((numbers, kinds[0]), (OneHotEncoder(handle_unknown="ignore"), kinds[1]))


def within_one(rows: np.ndarray, categorical: Sequence[bool]) -> np.ndarray:
    """Rows (N, K) with each column of numbers over its largest, so that no mean of them overflows."""
    largest = np.fmax.reduce(np.abs(rows))
    return rows / np.where(np.array(categorical) | ~(largest > 0), 1.0, largest)
