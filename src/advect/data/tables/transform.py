"""Table columns to model units and back, from checkpoint contents alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.records import Record, as_record
from advect.data.tables.coded import Coded
from advect.data.tables.columns import Column, Number, column_from_config
from advect.data.tables.rules import Constraints, Mapped, Rule
from advect.data.tables.scaling import StandardScaling
from advect.data.transforms import Transform


@dataclass(frozen=True)
class TableTransform(Transform):
    """Columns (B, K) in table units to vectors (B, D), see :class:`Number` and :class:`Categories`.

    Table units are float64: float32 lacks digits for dates and large whole numbers.

    Columns that follow from others by ``rules`` have no dimension, and are put in by :meth:`inverse`.

    Args:
        columns: one or more, in table order.
        rules: among the columns.

    Raises:
        UserError: all columns are constant.
    """

    columns: Sequence[Column]
    rules: Sequence[Rule] = ()
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        built = tuple(self.columns)
        object.__setattr__(self, "columns", built)
        object.__setattr__(self, "rules", tuple(self.rules))
        if not sum(self.widths):
            names = ", ".join(repr(column.name) for column in built) or "none"
            raise UserError(f"the data have no column that varies, besides conditions (columns: {names}); give one")

    @cached_property
    def constraints(self) -> Constraints | None:
        return Constraints(tuple(self.columns), tuple(self.rules)) if self.rules else None

    @cached_property
    def derived(self) -> frozenset[int]:
        """Places of the columns that follow from others."""
        return frozenset() if self.constraints is None else self.constraints.targets

    @property
    def widths(self) -> list[int]:
        """Dimensions of each column in model units; they sum to D."""
        return [0 if i in self.derived else column.width for i, column in enumerate(self.columns)]

    @cached_property
    def code_places(self) -> tuple[tuple[int, int], ...]:
        ends, found = np.cumsum([0, *self.widths]).tolist(), []
        for i, (column, start) in enumerate(zip(self.columns, ends, strict=False)):
            found += [] if i in self.derived else [(start + place, width) for place, width in column.codes]
        return tuple(found)

    @cached_property
    def plain(self) -> TableTransform:
        """This transform with each number as one element, as distances take it."""
        return (
            self
            if not any(isinstance(c, Coded) for c in self.columns)
            else replace(self, columns=[column.plain for column in self.columns])
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.columns, x.double().unbind(1), strict=True)
        return torch.cat([c.forward(part) for i, (c, part) in enumerate(parts) if i not in self.derived], 1)

    def inverse(self, x: Tensor) -> Tensor:
        """Model units (B, D) to table units (B, K) float64; NaN is missing."""
        parts = zip(self.columns, x.split(self.widths, 1), strict=True)
        missing = x.new_full((x.shape[0],), torch.nan, dtype=torch.float64)
        y = [missing if i in self.derived else column.inverse(part) for i, (column, part) in enumerate(parts)]
        rows = torch.stack(y, 1)
        return rows if self.constraints is None else self.constraints.derived(rows)

    def unrounded(self, x: Tensor) -> Tensor:
        """Columns that rules derive have no derivative."""
        parts = zip(self.columns, x.split(self.widths, 1), strict=True)
        missing = x.new_full((x.shape[0],), torch.nan, dtype=torch.float64)
        y = [missing if i in self.derived else column.unrounded(part) for i, (column, part) in enumerate(parts)]
        rows = torch.stack(y, 1)
        if self.constraints is None:
            return rows
        return torch.where(rows.isnan(), self.constraints.derived(rows.detach()), rows)

    def to_frame(self, x: Tensor, *, text: bool = False) -> Any:
        """Table units (B, K) as a pandas DataFrame with the columns' types, names and order, or as text.

        Raises:
            UserError: pandas is not installed.
        """
        pd = optional_import("pandas", "tables")
        values = x.detach().cpu().double().numpy()
        pairs = zip(self.columns, map(np.ascontiguousarray, values.T), strict=True)
        return pd.concat([c.to_text(v) if text else c.to_series(v) for c, v in pairs], axis=1)

    def log_det(self, elements: int) -> float:
        """Constant log-determinant of reals under standard scaling; raises UserError as :meth:`log_slopes`."""
        return self.log_slopes(()).sum().item()

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        """log |d forward / dx| of each column, (D,).

        Raises:
            UserError: a column has no density, its scaling is not linear, or there are rules.
        """
        if self.rules:
            raise UserError(
                "rows that obey --rule have no density, or one that is known up to a factor; train without it for one"
            )
        slopes = []
        for column in self.columns:
            if not (isinstance(column, Number) and not column.missing and column.value_width):
                raise UserError(
                    f"column {column.name!r} has categories, missing values or one value alone, so the data have no"
                    " density; train on real numbers for one"
                )
            if not isinstance(column.scaling, StandardScaling):
                raise UserError(
                    f"column {column.name!r} is scaled by quantiles, whose log_det depends on the value;"
                    " train with scaling='standard' for a density"
                )
            slopes.append(-float(np.log(column.scaling.std)))
        return torch.tensor(slopes, dtype=torch.float64)

    def to_config(self) -> dict[str, Any]:
        rules = {"rules": [rule.to_config() for rule in self.rules]} if self.rules else {}
        return {"kind": self.kind, "columns": [column.to_config() for column in self.columns], **rules}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> TableTransform:
        own = as_record({**config, **tensors}, _Entries, "the table transform")
        return cls(list(map(column_from_config, own.columns)), own.rules)

    def check_written(self, *, text: bool) -> None:
        """Raise UserError unless the values that the columns can have can be written."""
        for i, column in enumerate(self.columns):
            followed = [rule for rule in (self.constraints.all if self.constraints else ()) if rule.places[0] == i]
            others = [v for rule in followed if isinstance(rule, Mapped) for v in rule.rule.values if v is not None]
            column.check_written(text=text, others=others)


class _Entries(Record):
    columns: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    rules: tuple[Rule, ...] = ()
