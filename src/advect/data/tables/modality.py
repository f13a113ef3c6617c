"""Tables: rows with the columns, types and names of the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.core.types import Conditions
from advect.data.captions import Colouring
from advect.data.given import check_given
from advect.data.modality import DISTANCES, Modality
from advect.data.tables.dataset import TableMetadata, frame_of
from advect.data.tables.files import write_in_style
from advect.data.tables.transform import TableTransform
from advect.data.vectors.modality import VectorPlots
from advect.data.vectors.plot import vector_plot


@register("table")
class Tables(VectorPlots[TableMetadata]):
    """Table rows: samples.csv, or .parquet if that was read. Distances use scaled columns."""

    usual_preset = "table"
    metrics = (*DISTANCES, "columns", "straightness")

    space = "the table's scaled columns"

    @property
    def categorical(self) -> tuple[bool, ...]:
        return tuple(column["kind"] != "number" for column in self.metadata["transform"]["columns"])

    def describe(self, shape: Sequence[int]) -> str:
        return f"rows of {len(self.metadata['transform']['columns']):,} columns"

    def check_output(self, *, individual: bool = False) -> None:
        Modality.check_output(self, individual=individual)
        optional_import("pandas", "tables")
        if self.metadata.get("suffix") == ".parquet":
            optional_import("pyarrow", "tables")

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        frame = frame_of(x, conditions, self.metadata, text=self.metadata["suffix"] == ".csv")
        return [write_in_style(folder, frame, self.metadata)]

    @cached_property
    def _columns(self) -> TableTransform:
        assert isinstance(self.transform, TableTransform)
        return self.transform

    @property
    def groups(self) -> Tensor:
        """The columns, of which those of one value have no element."""
        widths = torch.tensor(self._columns.widths)
        return torch.arange(len(widths)).repeat_interleave(widths)

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

    def plot_wide(self, x: Tensor, reference: Tensor | None, colours: Colouring | None) -> Image.Image:
        """Components of scaled columns (columns differ in unit or are codes); quantiles of numbers."""
        columns = self.metadata["transform"]["columns"]
        numbers = [i for i, column in enumerate(columns) if column["kind"] == "number"]
        names = [column["name"] for column in columns]
        return vector_plot(x, reference, names=names, features=numbers, embed=self.transform.forward, colours=colours)

    def feature_space(self, x: Tensor) -> Tensor:
        """Rows (n, D) in table units as scaled columns (n, K)."""
        return self.transform.forward(x)
