"""Cells of which some genes are known: .h5ad files with other genes missing or NaN, and their answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write, open_regular
from advect.data.cells.matrix import reading_h5ad
from advect.data.cells.transform import Expression
from advect.data.cells.write import CellsMetadata, var_table

TOTALS = ("total_counts", "n_counts")
"""Columns of ``obs`` with the counts of a cell over all genes, as scanpy calls them."""


@dataclass(frozen=True, eq=False)
class CellQuestion:
    """Cells of a file.

    Attributes:
        facts: ``Cells.metadata``.
        obs: table of the cells.
        own: (n, D) values of the flow's genes as they stand, NaN where asked for.
        totals: (n,) counts of each cell over all genes, if ``own`` are counts that the flow normalises.
        counts: whether ``own`` are counts, else expression.
        conditions: n values each by name, None where missing.
    """

    facts: CellsMetadata
    obs: Any
    own: np.ndarray
    totals: np.ndarray | None
    counts: bool
    conditions: dict[str, list[Any]]

    @property
    def scale(self) -> Expression:
        """Between counts and expression."""
        return Expression(**self.facts["expression"])

    def values(self) -> torch.Tensor:
        """The cells (n, D) in the flow's data units, NaN where asked for."""
        x, scale = torch.from_numpy(self.own).double(), self.scale
        if self.counts:
            x = x if scale.target_sum is None else x * (scale.target_sum / torch.from_numpy(self.totals)[:, None])
            x = x.log1p() if scale.log1p else x
        if scale.space == "expression":
            return x
        x = x.expm1() if scale.log1p else x
        return x if scale.target_sum is None else x * (scale.library / scale.target_sum)

    def answer(self, expression: torch.Tensor, path: Path) -> Path:
        """Write the cells with what is asked for from ``expression`` (n, D), in the units of the file.

        ``.h5ad`` is appended to ``path``. What was known stands as it was.
        """
        anndata = optional_import("anndata", "cells")
        totals = None if self.totals is None else torch.from_numpy(self.totals)
        drawn = self.scale.counts(expression, totals) if self.counts else expression
        whole = np.where(np.isnan(self.own), drawn.numpy().astype(self.own.dtype), self.own)
        file = path.with_name(path.name + ".h5ad")
        cells = anndata.AnnData(whole, obs=self.obs, var=var_table(self.facts["var"]))
        atomic_write(file, lambda partial: cells.write_h5ad(partial, compression="gzip"))
        return file


def read_cells(path: Path, facts: CellsMetadata) -> CellQuestion:
    """Cells of an .h5ad file, in ``X``; genes of the flow that it lacks, or that are NaN, are asked for.

    Whole numbers are counts, others expression. Raises UserError for a file that is none, has no gene of the flow or
    negative counts, and for counts without the totals that normalising needs.
    """
    anndata = optional_import("anndata", "cells")
    with reading_h5ad(path):
        open_regular(path).close()
        cells = anndata.read_h5ad(path)
    genes = {gene: i for i, gene in enumerate(facts["var"]["genes"])}
    names = [str(name) for name in cells.var_names]
    places = [i for i, name in enumerate(names) if name in genes]
    if not places or not len(cells):
        own = next(iter(genes))
        raise UserError(
            f"{path} has {len(cells)} cells and {len(places)} of the flow's genes, such as {own!r}; give some of both"
        )
    if len({names[i] for i in places}) < len(places):
        raise UserError(f"{path} has a gene twice; AnnData.var_names_make_unique() mends it")
    x = cells.X[:, places]
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x)
    own = np.full((len(cells), len(genes)), np.nan, x.dtype if x.dtype.kind == "f" else np.float32)
    own[:, [genes[names[i]] for i in places]] = x
    known, scale = own[~np.isnan(own)], Expression(**facts["expression"])
    counts = bool((known == np.round(known)).all()) and (scale.log1p or scale.target_sum is not None)
    if scale.non_negative and (known < 0).any():
        raise UserError(f"{path} has values below 0, down to {known.min():.4g}, and the data have none; mend them")
    totals = next((cells.obs[name].to_numpy(np.float64) for name in TOTALS if name in cells.obs), None)
    if counts and scale.target_sum is not None and (totals is None or not (totals > 0).all()):
        raise UserError(
            f"{path} has counts of some genes, and the flow's expression is by the counts of each cell over all genes;"
            f" give these in obs[{TOTALS[0]!r}], or expression instead of counts"
        )
    needed = counts and scale.target_sum is not None
    told = {name: _values(cells.obs[name]) for name in facts["obs"] if name in cells.obs}
    return CellQuestion(facts, cells.obs, own, totals if needed else None, counts, told)


def _values(series: Any) -> list[Any]:
    return [None if lost else value for value, lost in zip(series.tolist(), series.isna(), strict=True)]
