"""Tables: rows with the columns, types and names of the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from advect.core.errors import optional_import
from advect.core.registry import register
from advect.core.types import Conditions
from advect.data.captions import Colouring
from advect.data.modality import DISTANCES, Modality
from advect.data.tables.dataset import TableMetadata, frame_of
from advect.data.tables.files import write_in_style
from advect.data.vectors.modality import VectorPlots
from advect.data.vectors.plot import vector_plot


@register("table")
class Tables(VectorPlots[TableMetadata]):
    """Table rows: samples.csv, or .parquet if that was read. Distances use scaled columns."""

    usual_preset = "table"
    metrics = (*DISTANCES, "columns", "class_accuracy", "straightness")

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

    def plot_wide(self, x: Tensor, reference: Tensor | None, colours: Colouring | None) -> Image.Image:
        """Components of scaled columns (columns differ in unit or are codes); quantiles of numbers."""
        columns = self.metadata["transform"]["columns"]
        numbers = [i for i, column in enumerate(columns) if column["kind"] == "number"]
        names = [column["name"] for column in columns]
        return vector_plot(x, reference, names=names, features=numbers, embed=self.transform.forward, colours=colours)

    def feature_space(self, x: Tensor) -> Tensor:
        """Rows (n, D) in table units as scaled columns (n, K)."""
        return self.transform.forward(x)
