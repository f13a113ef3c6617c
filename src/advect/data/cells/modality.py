"""Cells: .h5ad files with the data's genes and counts drawn around component expectations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.records import as_record
from advect.core.registry import register
from advect.core.types import Category, Conditions, DataSpec, Length, Quantity
from advect.data.base import Split
from advect.data.captions import Colouring
from advect.data.cells.conditions import CellSplit
from advect.data.cells.counts import CountComponents, count_noise
from advect.data.cells.given import read_cells
from advect.data.cells.transform import Chain, Components, Expression
from advect.data.cells.write import CellsMetadata, check_tables, join_h5ad, write_h5ad
from advect.data.figure import save_png
from advect.data.given import GivenRows
from advect.data.modality import DISTANCES, Modality
from advect.data.transforms import Transform
from advect.data.vectors.modality import VectorPlots
from advect.data.vectors.plot import vector_plot


@register("cells")
class CellsModality(VectorPlots[CellsMetadata]):
    """Cells, compared as expression: samples.h5ad, in counts or expression as trained."""

    record = CellsMetadata
    usual_preset = "cells"
    metrics = (*DISTANCES, "marginals", "energy_within", "class_accuracy", "straightness")

    space = "expression"

    def __init__(self, spec: DataSpec, transform: Transform, metadata: CellsMetadata | None = None) -> None:
        super().__init__(spec, transform, metadata)
        self._expression = as_record(dict(self.metadata["expression"]), Expression, "the expression of the cells")

    @property
    def components(self) -> Components | None:
        parts = self.transform.parts if isinstance(self.transform, Chain) else ()
        found = next((part for part in parts if isinstance(part, Components | CountComponents)), None)
        return found.projection if isinstance(found, CountComponents) else found

    def given(self, x: Tensor) -> Tensor:
        """Cells (n, D) in data units, NaN for genes that are asked for, in model units.

        Raises UserError as :meth:`Modality.given`, and on components, of which a gene is a linear measurement.
        """
        self._check_genes()
        return super().given(x)

    def _check_genes(self) -> None:
        if self.components is not None:
            raise UserError(
                "this flow makes principal components, of which a given gene is a measurement and not an entry; ask it"
                " by posterior sampling (--posterior mmps), or train on genes (--pca None) with --mask genes"
            )

    def given_rows(self, given: Any) -> Tensor:
        return given.own.values() if isinstance(given, GivenRows) else super().given_rows(given)

    def read_given(self, path: Path) -> GivenRows:
        """Cells of an .h5ad file; genes that it lacks, or that are NaN, are asked for."""
        self._check_genes()
        question = read_cells(path, self.metadata)
        return GivenRows(self.given(question.values()), question.conditions, question)

    def write_given(self, x: Tensor, conditions: Conditions, rows: GivenRows, draws: int, folder: Path) -> list[Path]:
        """A file for each draw, draw-1 and so on, with the flow's genes in the units of the one read."""
        expression, files = self._expression.forward(x), []
        for k in range(draws):
            files.append(rows.own.answer(expression[k::draws], folder / f"draw-{k + 1}"))
        save_png(self.plot(x, conditions), folder / "samples.png")
        return [*files, folder / "samples.png"]

    def describe(self, shape: Sequence[int]) -> str:
        return f"cells with {shape[0]:,} genes"

    def check_output(self, *, individual: bool = False) -> None:
        Modality.check_output(self, individual=individual)
        optional_import("anndata", "cells")
        _ = self._written

    @cached_property
    def _written(self) -> None:
        """Raise UserError unless the tables of genes and cells can be written, once."""
        check_tables(self.metadata, self.spec.conditions)

    def check_facts(self) -> None:
        facts, parts = self.metadata, self.transform.parts if isinstance(self.transform, Chain) else (self.transform,)
        genes, width = facts["var"]["genes"], self.transform.inverse(torch.zeros(1, *self.spec.shape)).shape[-1]
        if len(genes) != width or any(len(one["values"]) != width for one in facts["var"]["columns"].values()):
            raise UserError(f"the table of genes must have {width:,} of them, got {len(genes):,}; take another file")
        own = {name: c for name, c in self.spec.conditions.items() if not isinstance(c, Length)}
        if own.keys() != facts["obs"].keys():
            raise UserError(f"the conditions {sorted(own)[:9]} are not the columns of the cells; take another file")
        for name, one in own.items():
            entry = facts["obs"][name]
            fits = isinstance(one, Category) and "ordered" in entry and len(entry.get("labels", ())) == len(one.names)
            fits |= isinstance(one, Quantity) and {"mean", "std"} <= entry.keys() and len(one.mean) == 1
            if not fits:
                raise UserError(f"the condition {name!r} is not that of its column of cells; take another file")
        if facts["space"] != self._expression.space:
            raise UserError("the cells' space is not that of their expression; take another file")
        if facts.get("counted") and not any(isinstance(part, CountComponents) for part in parts):
            raise UserError("the cells' counts are drawn around components of counts, which they have not")

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        write_h5ad(folder / "samples.h5ad", x, self.metadata, conditions=conditions, first=first)
        return [folder / "samples.h5ad"]

    def join(self, parts: Sequence[Path], path: Path, bar: tqdm) -> bool:
        atomic_write(path, lambda partial: join_h5ad(parts, partial, bar))
        return True

    def plot_wide(self, x: Tensor, reference: Tensor | None, colours: Colouring | None) -> Image.Image:
        """Principal components, and quantiles of named genes."""
        return vector_plot(x, reference, names=self.metadata["var"]["genes"], colours=colours)

    def data(self, split: Split, indices: np.ndarray) -> tuple[Tensor, Conditions]:
        """Measured expression (n, D), zeros included."""
        batch, cond = super().data(split, indices)
        split, indices = split.origin(indices)
        return (split.expression(indices) if isinstance(split, CellSplit) else self.comparable(batch)), cond

    def comparable(self, x: Tensor) -> Tensor:
        """Cells (n, D) from data units to expression."""
        return self._expression.forward(x)

    def counted(self, x: Tensor, *, first: int = 0, seed: int = 0) -> Tensor:
        """Cells with counts drawn around the expected ones, see :func:`~advect.data.cells.counts.count_noise`."""
        if not self.metadata.get("counted"):
            return x
        return count_noise(x, self.transform, CounterRng(stream_seed(seed, Stream.COUNTS), 0, len(x), start=first))

    def measured(self, x: Tensor, *, first: int = 0, seed: int = 0) -> Tensor:
        """Expression of the cells as written."""
        return self.comparable(self.counted(x, first=first, seed=seed))
