"""Vectors: Parquet columns, or archives and CSV; scatter plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write
from advect.core.registry import register
from advect.core.types import Batch, Conditions
from advect.data.arrays import in_type
from advect.data.captions import Colouring, colouring
from advect.data.given import GivenRows, check_asked
from advect.data.modality import M, Modality, condition_columns, labels_of, write_npz
from advect.data.text_files import has_returns, write_rows
from advect.data.vectors.parquet import VectorMetadata, write_vectors
from advect.data.vectors.plot import scatter_plot, vector_plot


class VectorPlots(Modality[M]):
    """Vectors (D,), plotted as points or quantiles."""

    layout = "vector"
    trajectories = 200

    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Scatter plot over the data for D <= 2; else two principal components and quantiles per feature.

        Samples are coloured by a condition.
        """
        behind, colours = None if reference is None else reference.x1, colouring(conditions, self.spec)
        if max(x.shape[1], self.spec.shape[0]) <= 2:
            return scatter_plot(x, behind, colours)
        return self.plot_wide(x, behind, colours)

    def plot_wide(self, x: Tensor, reference: Tensor | None, colours: Colouring | None) -> Image.Image:
        """Plot of more than two dimensions."""
        return vector_plot(x, reference, colours=colours)


@register("vector")
class Vectors(VectorPlots[VectorMetadata]):
    """Vectors (D,): samples.parquet if read from such a column, else samples.npz with ``x`` and samples.csv.

    Values are written in the type of the data, whole numbers rounded and within their range.
    """

    record = VectorMetadata

    def check_facts(self) -> None:
        type_, d = self.metadata.get("type", {}), math.prod(self.spec.shape)
        name, low, high = type_.get("dtype", "float"), type_.get("low", []), type_.get("high", [])
        if {len(low), len(high)} != {0 if name.startswith("float") else d}:
            raise UserError(f"the type {name} has {len(low)} and {len(high)} ends of ranges; take another file")
        if low:
            least, most = (0, 1) if name == "bool" else (np.iinfo(name).min, np.iinfo(name).max)
            if not all(least <= a <= b <= most for a, b in zip(low, high, strict=True)):
                raise UserError(f"the ranges of whole numbers do not fit the type {name}; take another file")
        if "column" in self.metadata and self.metadata["column"] == self._label:
            raise UserError(f"vectors and labels are both called {self._label!r}; take another file")

    @property
    def _label(self) -> str:
        return self.metadata.get("label") or "label"

    def describe(self, shape: Sequence[int]) -> str:
        return f"{shape[0]}-dimensional vectors"

    def check_output(self, *, individual: bool = False) -> None:
        Modality.check_output(self, individual=individual)
        if "column" in self.metadata:
            optional_import("pyarrow", "tables")

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        columns = condition_columns(conditions, self.spec)
        own = in_type(x, self.metadata.get("type", {}))
        if "column" in self.metadata:
            files = [folder / "samples.parquet"]  # of one condition or none, which has its own name there
            labels = labels_of(conditions, self.spec)
            others = dict(zip([self._label], (v.tolist() for v in labels.values()), strict=False))
            write_vectors(files[0], own, column=self.metadata["column"], others=others)
        else:
            files = [write_npz(folder, {"x": own}, conditions, self.spec), folder / "samples.csv"]
            shown = x.numpy() if own.dtype == np.float64 else own  # the digits that the model has
            atomic_write(files[-1], lambda path: _write_csv(path, shown, columns))
        return files

    def read_given(self, path: Path) -> GivenRows:
        """Vectors of a .npy, .npz, Parquet or CSV file, with NaN or nothing where they are asked for."""
        from advect.data.vectors.given import read_vector_question

        names, about = list(self.spec.conditions), self.metadata
        question = read_vector_question(
            path, self.spec.shape[0], names, column=about.get("column"), label=about.get("label")
        )
        check_asked(str(path), np.isnan(question.x))
        x = torch.from_numpy(question.x.astype(np.float64))
        return GivenRows(self.transform.forward(x), dict(question.conditions), question)

    def given_rows(self, given: Any) -> Tensor:
        return super().given_rows(given.own.x if isinstance(given, GivenRows) else given)

    def write_given(self, x: Tensor, conditions: Conditions, rows: GivenRows, draws: int, folder: Path) -> list[Path]:
        """A file for each draw, draw-1 and so on, as the one read with its NaN filled."""
        own = in_type(x, self.metadata.get("type", {}))
        return [rows.own.answer(own[k::draws], folder / f"draw-{k + 1}") for k in range(draws)]


def _write_csv(path: Path, x: np.ndarray, columns: dict[str, list[Any]]) -> None:
    """Write x (n, D) as columns x1 to xD, then the other columns."""
    names = [*(f"x{i + 1}" for i in range(x.shape[1])), *columns]
    # A float32 has its shortest digits as numpy's own scalar only.
    rows = ([*map(str, row), *others] for row, *others in zip(x, *columns.values(), strict=True))
    write_rows(path, chain([names], rows), quoted=has_returns(chain(columns, *columns.values())))
