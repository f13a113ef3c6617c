"""Tables: rows with the columns, types and names of the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.core.types import Conditions
from advect.data.captions import Colouring
from advect.data.given import GivenRows, check_asked, check_given
from advect.data.modality import DISTANCES, Modality
from advect.data.tables.columns import Categories, Column, column_from_config
from advect.data.tables.dataset import TableMetadata, frame_of
from advect.data.tables.family import Children, check_facts, draw_children
from advect.data.tables.files import write_in_style
from advect.data.tables.given import frame_units, read_question
from advect.data.tables.infer_columns import check_told
from advect.data.tables.transform import TableTransform
from advect.data.transforms import transform_from_config
from advect.data.vectors.modality import VectorPlots
from advect.data.vectors.plot import vector_plot

logger = logging.getLogger(__name__)


@register("table")
class Tables(VectorPlots[TableMetadata]):
    """Table rows: samples.csv, or .parquet if that was read. Distances use scaled columns."""

    record = TableMetadata
    usual_preset = "table"
    metrics = (
        *DISTANCES,
        "columns",
        "column_shapes",
        "column_pair_trends",
        "c2st",
        "ml_efficacy",
        "alpha_precision",
        "privacy",
        "class_accuracy",
        "straightness",
    )

    space = "the table's scaled columns"

    _drawn: Children | None = None
    """Children that are written, where they are drawn for parents."""

    @property
    def categorical(self) -> tuple[bool, ...]:
        return tuple(isinstance(column, Categories) for column in self._columns.columns)

    @property
    def separator(self) -> str:
        return self.metadata["separator"] or ","

    def describe(self, shape: Sequence[int]) -> str:
        return f"rows of {len(self.metadata['transform']['columns']):,} columns"

    def check_output(self, *, individual: bool = False) -> None:
        Modality.check_output(self, individual=individual)
        optional_import("pandas", "tables")
        if self.metadata.get("suffix") == ".parquet":
            optional_import("pyarrow", "tables")
        _ = self._written

    @cached_property
    def _written(self) -> None:
        """Raise UserError unless what the columns can have can be written, once."""
        text = self.metadata.get("suffix") == ".csv"
        self._columns.check_written(text=text)
        for column in self._told:
            column.check_written(text=text)

    @cached_property
    def _told(self) -> list[Column]:
        """The columns of the conditions."""
        return list(map(column_from_config, self.metadata["conditions"]))

    def check_facts(self) -> None:
        names = [column.name for column in (*self._columns.columns, *self._told)]
        if len(set(names)) < len(names) or sorted(self.metadata["order"]) != sorted(names):
            raise UserError("the order of the columns has not each of them once; take another file")
        if transform_from_config(self.metadata["transform"]) != self.transform:
            raise UserError("the columns of samples and those of their file differ; take another file")
        if not set(self.metadata["index"]) <= set(names) or not set(self.metadata["unnamed"]) <= set(names):
            raise UserError("the index has columns that the table has not; take another file")
        codes = tuple((code.start, code.size) for code in self.spec.codes)
        if codes and codes != self._columns.code_places:
            raise UserError("the codes of categories are not those of the columns; take another file")
        check_told(self._told, self.spec.conditions)
        if (family := self.metadata.get("family")) is not None:
            check_facts(family, self.metadata["order"], self._told)

    def children(self, parents: Path | None, seed: int) -> tuple[Modality[Any], Conditions, int | None]:
        """Raises UserError without ``parents`` for a table that has some, whose columns are not drawn."""
        facts = self.metadata.get("family")
        if facts is None:
            return super().children(parents, seed)
        if parents is None:
            raise UserError(
                f"these are children, drawn for parents; give --parents FILE with the key {facts['key']!r} and the"
                f" columns {', '.join(map(repr, facts['parents']))}"
            )
        told = {column.name: column for column in self._told}
        drawn = draw_children(parents, facts, [told[name] for name in facts["parents"]], seed)
        logger.info(drawn.says)
        made = copy(self)
        made._drawn = drawn
        return made, drawn.cond, len(drawn)

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        frame = frame_of(x, conditions, self.metadata, text=self.metadata["suffix"] == ".csv")
        family = self.metadata.get("family")
        if self._drawn is not None and family is not None:
            keys = self._drawn.keys[first : first + len(x)]
            frame[family["key"]] = keys.set_axis(frame.index)
            frame = frame[family["columns"]]
        return [write_in_style(folder, frame, self.metadata)]

    @cached_property
    def _columns(self) -> TableTransform:
        assert isinstance(self.transform, TableTransform)
        return self.transform

    @cached_property
    def _learned(self) -> np.ndarray:
        """Which columns of the data (K,) are no conditions."""
        return np.array([name not in self.spec.conditions for name in self.metadata["order"]])

    @property
    def groups(self) -> Tensor:
        """The columns, of which those of one value have no element."""
        widths = torch.tensor(self._columns.widths)
        return torch.arange(len(widths)).repeat_interleave(widths)

    @property
    def size(self) -> int:
        return sum(width > 0 for width in self._columns.widths)

    @property
    def entry_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self._columns.columns)

    def given(self, x: Tensor) -> Tensor:
        """Rows (n, K) in table units, NaN where asked for, in model units (n, D).

        A value that is missing as such, in a column that has such values, is asked for, too.
        """
        check_given(x, (len(self._columns.columns),))
        for column, values in zip(self._columns.columns, x.unbind(1), strict=True):
            if unfit := column.unfit(values.double().numpy()):
                place, why = unfit
                raise UserError(f"given has {values[place]:g} in row {place} of column {column.name!r}, and {why}")
        return torch.where(x.isnan()[:, self.groups], torch.nan, self.transform.forward(x))

    def given_rows(self, given: Any) -> Tensor:
        """Also a data frame, or a dict of columns or of one row's values; columns that it lacks are asked for."""
        if isinstance(given, GivenRows):
            return torch.from_numpy(given.own.values[:, self._learned])
        if isinstance(given, Mapping) or hasattr(given, "columns"):
            return torch.from_numpy(frame_units(given, self._columns.columns))
        return super().given_rows(given)

    def read_given(self, path: Path) -> GivenRows:
        """Rows of a CSV or Parquet file with the columns of the data; the conditions' have to be filled."""
        by_name = {column.name: column for column in self._columns.columns}
        told = {c["name"]: column_from_config(c) for c in self.metadata["conditions"]}
        question = read_question(path, [(by_name | told)[name] for name in self.metadata["order"]])
        check_asked(str(path), np.isnan(question.values[:, self._learned]))
        conditions = {c.name: v for c, v in zip(question.columns, question.values.T, strict=True) if c.name in told}
        for name, values in conditions.items():
            if np.isnan(values).any():
                row = int(np.isnan(values).argmax())
                raise UserError(f"{path} has nothing in row {row} of column {name!r}, a condition; fill it in")
        x = torch.from_numpy(question.values[:, self._learned])
        if self.transform.constraints is not None:
            _ = self.transform.constraints.known(x, path.name)  # raises for rows that break them
        values = torch.where(x.isnan()[:, self.groups], torch.nan, self.transform.forward(x))
        own = {name: told[name].told(v) for name, v in conditions.items()}
        return GivenRows(values, own, question)

    def write_given(self, x: Tensor, conditions: Conditions, rows: GivenRows, draws: int, folder: Path) -> list[Path]:
        """A file for each draw, draw-1 and so on, as the one read with its empty entries filled."""
        question, files = rows.own, []
        known = self.given_rows(rows)
        for k in range(draws):
            cond = {name: value[k::draws] for name, value in conditions.items()}
            whole = torch.where(known.isnan(), x[k::draws].double(), known)
            frame = frame_of(whole, cond, self.metadata, text=question.raw is not None)
            for column, values in zip(question.columns, question.values.T, strict=True):
                if column.name in self.spec.conditions and question.raw is None:
                    frame[column.name] = column.to_series(values)  # exactly, which a network's input is not
            files.append(question.answer(frame, folder / f"draw-{k + 1}", index=self.metadata["index"]))
        return files

    def plot_wide(self, x: Tensor, reference: Tensor | None, colours: Colouring | None) -> Image.Image:
        """Components of scaled columns (columns differ in unit or are codes); quantiles of numbers."""
        numbers = [i for i, names in enumerate(self.categorical) if not names]
        embed = self._columns.plain.forward
        return vector_plot(x, reference, names=self.entry_names, features=numbers, embed=embed, colours=colours)

    def feature_space(self, x: Tensor) -> Tensor:
        """Rows (n, D) in table units as scaled columns (n, K)."""
        return self._columns.plain.forward(x)
