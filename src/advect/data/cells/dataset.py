"""Single cells from an .h5ad file: expression of genes or components, conditions from obs, controls as starts."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Count, Share
from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.core.types import Category, Conditions, DataSpec
from advect.data.base import Dataset, Detected, Preview
from advect.data.cells.conditions import (
    CellSplit,
    Column,
    Starts,
    check_controls,
    control_cells,
    read_columns,
    split_by_digest,
    split_control,
)
from advect.data.cells.counts import CountComponents
from advect.data.cells.hdf5 import open_h5ad
from advect.data.cells.matrix import (
    RAW,
    CellMatrix,
    MatrixStats,
    Normalised,
    held_matrix,
    is_raw,
    least,
    moments,
    most_variable,
    principal_components,
    reading_h5ad,
    stored_matrix,
    survey,
)
from advect.data.cells.transform import Chain, Components, Expression, Space
from advect.data.cells.write import CellsMetadata, obs_facts, var_facts
from advect.data.transforms import Identity, Standardize, Transform

if TYPE_CHECKING:
    import pandas as pd

VARIABLE, COMPONENTS = 2000, 50
"""Defaults for many cells, see docs/experiments/cells.md; ``--pca None`` takes the genes themselves."""

COUNTED = 20_000
"""Maximum number of cells to which the law of counts is fitted."""

LARGEST_LOG = 20.0
"""Above any logarithm of a count: log(1 + 1e8) is 18.4."""


@register("cells")
class Cells(Dataset):
    """Cells (D,) of an AnnData file: D genes or components, in the units of ``space``.

    Steps: scale counts to ``target_sum`` per cell, summed over all genes of the file; take log(1 + x); select genes;
    standardise each gene or, with ``pca``, each component score. Matrices stay sparse except for fetched rows. Cells
    with equal values in all genes share a split.

    With ``control`` the samples are the other cells, and ``Batch.x0`` holds control cells of the same split, drawn
    uniformly from those equal in all other categorical conditions, or from all if none is. Without an rng, sample i
    has a fixed control.

    Args:
        path: an .h5ad file or an AnnData object.
        layer: layer of the values; None for X, "raw" for ``.raw`` with its genes.
        conditions: columns of obs as categories; empty values are missing.
        continuous: columns of obs as numbers; empty values are missing.
        normalise: scale each cell to ``target_sum``.
        target_sum: > 0; usually 1e4.
        log1p: take log(1 + x).
        standardise: (x - mean) / std over the training cells; a deviation of 0 becomes 1.
        highly_variable: number of genes to keep, by dispersion (Zheng et al. 2017) over the training cells.
        genes: names of the genes to keep, in this order; ``highly_variable`` then selects among them.
        pca: number of principal components; the inverse gives the expected expression of all genes, of counts with
            ``log1p`` by a regression (:class:`CountComponents`), around which :func:`count_noise` draws counts.
        control: "column=value" of the cells that the flow starts at.
        held_out: share of the cells held out, in [0, 1).
        seed: seed of the split and of the search for components.
        space: data units: "expression" (after normalise and log1p) or "counts" (rounded, for cells of the median
            library size).
        backed: leave the matrix in the file and read rows on demand.

    Raises:
        UserError: the file, its values, a name or an argument is invalid.
    """

    place: ClassVar[str | None] = "the .h5ad file"
    usual_preset: ClassVar[str | None] = "cells"
    part_given: ClassVar[tuple[str, ...]] = ("genes", "seed")

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        there = path.is_file() and path.suffix.lower() == ".h5ad"
        return Detected(80, "an .h5ad file of single cells", "cells") if there else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        cells, genes = cell_counts(path)
        options = {"highly_variable": VARIABLE} if genes > VARIABLE else {}
        options |= {"pca": COMPONENTS} if min(cells, genes) >= 10 * COMPONENTS else {}
        return Preview(f"an .h5ad file of {cells:,} cells and {genes:,} genes", options)

    def __init__(
        self,
        path: Any,
        *,
        layer: str | None = None,
        conditions: Sequence[str] = (),
        continuous: Sequence[str] = (),
        normalise: bool = True,
        target_sum: Annotated[float, Meta(gt=0, le=10**12)] = 1e4,
        log1p: bool = True,
        standardise: bool = True,
        highly_variable: Count | None = None,
        genes: Sequence[str] | None = None,
        pca: Count | None = None,
        control: str | None = None,
        held_out: Share = 0.1,
        seed: int = 0,
        space: Space = "expression",
        backed: bool = False,
    ) -> None:
        target = target_sum if normalise else None
        scale = Expression(space=space, target_sum=target, log1p=log1p)  # refuses arguments before the file is read
        found, matrix, obs, var = _read(path, layer, scale, backed=backed)
        controls = control_cells(obs, control)
        train, rest = split_by_digest(found.digests, held_out, seed=seed)
        cells, self._starts = train[~controls[train]], train[controls[train]]
        check_controls(cells, self._starts, control)
        self._columns = read_columns(obs, conditions, continuous, used=np.flatnonzero(~controls), train=cells)
        self._control = split_control(control, obs.columns)[0] if control else ""
        linear = Normalised(matrix, found.libraries, target_sum=target, log1p=False)
        chosen = _choose(linear, var.index, genes, highly_variable, train)
        self._values = Normalised(matrix.columns(chosen), found.libraries, target_sum=target, log1p=log1p)
        model = _fit(self._values, train, rest, standardise=standardise, pca=pca, seed=seed)
        self._quantiles = _quantiles(found.libraries[cells]) if normalise else [1.0]
        self._counted = pca is not None and log1p and found.whole and found.lowest >= 0
        if self._counted:
            sizes = found.libraries if normalise else np.ones(len(found.libraries))
            some = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), COUNTED)).astype(np.int64))]
            assert isinstance(model[0], Components)
            counts = matrix.columns(chosen)
            model[0] = CountComponents.fit(model[0], scale, counts, self._values, sizes, some, seed=seed)
        middle = self._quantiles[len(self._quantiles) // 2]
        whole = found.whole and not (self._counted and space == "counts")  # what is expected lies between counts
        smallest = least(self._values, train) if pca is None else 0.0
        self._expression = replace(
            scale, library=middle, non_negative=found.lowest >= 0, integer=whole, smallest=smallest
        )
        self._var, self._to_model = var_facts(var.iloc[chosen]), Chain(model)
        options = [normalise, target_sum, log1p, standardise, pca, control, held_out, seed, space]
        held_starts = rest[controls[rest]]
        super().__init__(
            name="cells",
            spec=DataSpec((pca or len(chosen),), "cells", {k: c.condition for k, c in self._columns.items()}),
            transform=Chain([self._expression, *model]),
            train=self._split(cells, self._starts),
            held_out=self._split(rest[~controls[rest]], held_starts if len(held_starts) else self._starts),
            fingerprint=_fingerprint(found, self._columns, self._var["genes"], options),
        )

    @property
    def _matched(self) -> list[str]:
        """Categories that cells and controls share, without the control's own."""
        return [k for k, c in self._columns.items() if isinstance(c.condition, Category) and k != self._control]

    def _split(self, cells: np.ndarray, controls: np.ndarray) -> CellSplit:
        starts = None
        if self._control:
            codes = np.stack([self._columns[k].values for k in self._matched] or [np.zeros(self._values.shape[0])], 1)
            starts = Starts(controls, codes[controls], codes[cells])
        columns = {name: column.values for name, column in self._columns.items()}
        return CellSplit(self._values, cells, self._to_model, columns, starts)

    def controls(self, limit: int = 5000) -> tuple[Tensor, Conditions]:
        """Up to ``limit`` evenly spaced training controls in model units (n, D), and their categories (n,).

        Stored for sampling without the data: ``sources.Empirical(x, cond=cond)``.

        Raises:
            UserError: the data was built without ``control``.
        """
        if not self._control:
            raise UserError("these cells were built without control; give control='column=value'")
        picks = np.unique(np.linspace(0, len(self._starts) - 1, min(limit, len(self._starts))).astype(np.int64))
        cells = self._starts[picks]
        x = CellSplit(self._values, cells, self._to_model, {}).rows(cells)
        return x, {name: torch.from_numpy(self._columns[name].values[cells]) for name in self._matched}

    def source_samples(self) -> tuple[Tensor, Conditions] | None:
        """Training controls, see :meth:`controls`; None without ``control``."""
        return self.controls() if self._control else None

    @property
    def metadata(self) -> CellsMetadata:
        facts: Any = {
            "space": self._expression.space,
            "counted": self._counted,
            "expression": {k: v for k, v in self._expression.to_config().items() if k != "kind"},
            "library_quantiles": self._quantiles,
            "var": self._var,
            "obs": obs_facts(self._columns),
        }
        return facts


def cell_counts(path: Path) -> tuple[int, int]:
    """Numbers of cells and genes in an .h5ad file, from its indices."""
    with open_h5ad(path) as file:
        groups: list[Any] = [file["obs"], file["var"]]
        cells, genes = (len(group[group.attrs["_index"]]) for group in groups)
    return cells, genes


def _read(
    path: Any, layer: str | None, scale: Expression, *, backed: bool
) -> tuple[MatrixStats, CellMatrix, pd.DataFrame, pd.DataFrame]:
    """Checked statistics, values, obs and var."""
    optional_import("anndata", "cells")
    if isinstance(path, str | os.PathLike):
        where, matrix, obs, var, has_raw = _open(Path(path), layer, backed=backed)
    elif all(hasattr(path, name) for name in ("X", "obs", "var", "layers")):
        where, obs, var = "the AnnData object", path.obs, path.var
        _check_size(where, obs, var)
        matrix = held_matrix(path, layer)
        has_raw = path.raw is not None
        if has_raw and is_raw(layer, path.layers):
            var = path.raw.var
    else:
        raise UserError(f"path must be an .h5ad file or an AnnData object, got {type(path).__name__}")
    _check_names(var.index, where)
    found = survey(matrix, where)
    _check_values(found, where, scale, raw=has_raw and layer is None)
    return found, matrix, obs, var


def _open(path: Path, layer: str | None, *, backed: bool) -> tuple[str, CellMatrix, pd.DataFrame, pd.DataFrame, bool]:
    """Name of the values for messages, values, obs, var, and whether ``.raw`` exists."""
    import pandas as pd
    from anndata.io import read_elem

    if not path.is_file():
        raise UserError(f"path {str(path)!r} is not a file; give the .h5ad file")
    where = path.name + (f", layer {layer!r}" if layer else "")
    with reading_h5ad(path):
        file = open_h5ad(path)
    try:
        with reading_h5ad(path):
            raw, layers = "raw/X" in file, list(cast(Any, file["layers"])) if "layers" in file else []
            var = "raw/var" if raw and is_raw(layer, layers) else "var"
            tables: list[Any] = [read_elem(cast(Any, file[name])) if name in file else None for name in ("obs", var)]
            if not all(isinstance(table, pd.DataFrame) for table in tables):
                raise UserError(f"{path} has no tables obs and var; write it with a recent AnnData.write_h5ad")
            _check_size(where, *tables)
            return where, stored_matrix(file, layer, backed=backed, where=where), tables[0], tables[1], raw
    finally:
        if not backed:
            file.close()


def _check_size(where: str, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    if not (len(obs) and len(var)):
        raise UserError(f"{where} has {len(obs)} cells and {len(var)} genes; give at least one of each")


def _check_names(genes: Any, where: str) -> None:
    if genes.is_unique:
        return
    twice = genes[genes.duplicated()]
    raise UserError(
        f"{where} has {len(twice)} duplicate gene names, the first {twice[0]!r};"
        " AnnData.var_names_make_unique() mends it"
    )


def _check_values(found: MatrixStats, where: str, scale: Expression, *, raw: bool) -> None:
    """Raise UserError if the requested steps do not apply to the values."""
    asked = scale.target_sum is not None or scale.log1p
    off = "normalise=False, log1p=False (--no-normalise --no-log1p)"
    unscaled = f", or layer={RAW!r} (--layer raw) for the values in .raw" if raw else ""
    if asked and found.lowest < 0:
        raise UserError(
            f"{where} holds negative values, down to {found.lowest:.4g}, so it is not counts; give {off}{unscaled}"
        )
    if asked and not found.whole and found.highest <= LARGEST_LOG:
        raise UserError(
            f"{where} looks log-normalised already: its values are not whole, the largest is {found.highest:.4g};"
            f" give {off}{unscaled}"
        )
    if scale.space == "counts" and not (found.whole and found.lowest >= 0):
        raise UserError(f"space is 'counts', but {where} does not hold counts; give space='expression'")


def _choose(
    linear: CellMatrix, names: Any, genes: Sequence[str] | None, highly_variable: int | None, train: np.ndarray
) -> np.ndarray:
    """Columns to keep of a matrix before the logarithm."""
    chosen = np.arange(linear.shape[1])
    if genes is not None:
        known = {str(name): i for i, name in enumerate(names)}
        unknown = [gene for gene in genes if gene not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "see AnnData.var_names"
            raise UserError(f"genes names {unknown[0]!r}, which var has not; {fix}")
        if not len(genes) or len(set(genes)) < len(genes):
            raise UserError(f"genes must be one name or more, all different, got {len(set(genes))} in {len(genes)}")
        chosen = np.array([known[gene] for gene in genes])
    if highly_variable is None:
        return chosen
    return chosen[most_variable(*moments(linear.columns(chosen), train), highly_variable)]


def _fit(
    values: CellMatrix, train: np.ndarray, rest: np.ndarray, *, standardise: bool, pca: int | None, seed: int
) -> list[Transform]:
    """Transforms from expression to model units, fitted on the training cells."""
    mean, variance = moments(values, train)
    constant = [] if pca is not None else _constant(values, mean, variance, rest)
    parts: list[Transform] = []
    if pca is not None:
        components, variance = principal_components(values, train, mean, pca, seed=seed)
        parts.append(Components(torch.from_numpy(components).float(), torch.from_numpy(mean).float()))
        mean = np.zeros(pca)
    if standardise:
        # Expression is float32: a smaller deviation than its last bit is rounding.
        varies = np.sqrt(variance) > np.finfo(np.float32).eps * np.abs(mean)
        std = np.where(varies, np.sqrt(variance), 1.0)
        parts.append(Standardize(np.where(varies, mean, mean.astype(np.float32)).tolist(), std.tolist(), constant))
    elif constant:
        kept = np.zeros_like(mean)
        kept[constant] = mean[constant].astype(np.float32)
        parts.append(Standardize(kept.tolist(), np.ones_like(mean).tolist(), constant))
    return parts or [Identity()]


def _constant(values: CellMatrix, mean: np.ndarray, variance: np.ndarray, rest: np.ndarray) -> list[int]:
    """Genes that are constant in the training cells and in the ``rest`` (n,)."""
    genes = np.flatnonzero(np.sqrt(variance) <= np.finfo(np.float32).eps * np.abs(mean))
    if not len(genes) or not len(rest):
        return genes.tolist()
    others, spread = moments(values.columns(genes), rest)
    same = np.abs(others - mean[genes]) <= np.finfo(np.float32).eps * np.abs(mean[genes])
    return genes[same & (np.sqrt(spread) <= np.finfo(np.float32).eps * np.abs(others))].tolist()


def _quantiles(libraries: np.ndarray) -> list[float]:
    """The 101 percentiles of the library sizes of non-empty cells."""
    sizes = libraries[libraries > 0]
    if not len(sizes):
        raise UserError("normalise needs counts, and every training cell is empty; check the file")
    return np.quantile(sizes, np.linspace(0, 1, 101)).tolist()


def _fingerprint(found: MatrixStats, columns: dict[str, Column], genes: list[str], options: list[Any]) -> str:
    """sha256 (hex) of all cells, conditions, kept genes and options."""
    digest = hashlib.sha256(json.dumps([options, genes, sorted(columns)]).encode())
    digest.update(found.digests.tobytes())
    for name in sorted(columns):
        digest.update(repr(columns[name].condition).encode())
        digest.update(np.ascontiguousarray(columns[name].values).tobytes())
    return digest.hexdigest()
