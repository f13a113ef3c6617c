"""Generated cells as an .h5ad file, written from stored facts alone: no training data is at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write
from advect.core.random import Generator
from advect.core.types import NULL, Category, Conditions, Quantity
from advect.data.cells.conditions import Column
from advect.data.cells.transform import Expression, Space


class CellsMetadata(TypedDict):
    """What :func:`write_h5ad` needs beside samples, as JSON.

    ``space`` is "expression" or "counts"; ``counted``: molecules are counted around samples; ``expression``: arguments
    of :class:`Expression`; ``library_quantiles`` of the sums of counts of training cells; tables ``var`` and ``obs``.
    """

    space: Space
    counted: bool
    expression: dict[str, Any]
    library_quantiles: list[float]
    var: dict[str, Any]
    obs: dict[str, Any]


def count_noise(x: Tensor, facts: CellsMetadata, generator: Generator = None) -> Tensor:
    """Cells (B, D) with counted molecules, whose expected expression is x (B, D), both in the space of the facts.

    Components, and what a flow makes of them, are smooth: they say how much of a gene a cell is expected to show. What
    is then counted, gene by gene, is close to Poisson (Sarkar & Stephens 2021, "Separating measurement and expression
    models clarifies confusion in single-cell RNA sequencing analysis"). So each cell gets a library size, one of the
    101 stored percentiles of the training cells, and each gene a Poisson count. The rate is not ``expm1(x)``, as the
    logarithm is concave: it is the one for which the mean of the drawn expression is x, or 0 where x < 0.

    Library sizes are drawn apart from x, so that what ties a cell's size to its kind is lost.

    Args:
        x: as ``transform.inverse`` gives it.
        facts: those of ``Cells.metadata`` of components of counts: they say "counted".
        generator: draws sizes and counts.

    Raises:
        UserError: the facts are not those of components of counts.
    """
    if not facts.get("counted"):
        raise UserError("count_cells needs a flow of components of counts (--pca on whole numbers); take x as it is")
    scale = Expression(**facts["expression"])
    expected = scale.forward(x).detach().cpu().double().clamp(min=0).numpy()
    u = random.uniform((len(x),), generator, dtype=torch.float64).numpy()
    chance = random.uniform(x.shape, generator, dtype=torch.float64).numpy()
    sizes = np.asarray(facts["library_quantiles"], np.float64)
    steps = np.ones(1) if scale.target_sum is None else scale.target_sum / sizes
    which = (u * len(steps)).astype(np.int64)
    counts = np.empty_like(expected)
    for i in np.unique(which):
        cells = which == i
        means = _rates(expected[cells], float(steps[i])) if scale.log1p else expected[cells] / steps[i]
        counts[cells] = poisson_quantile(chance[cells], means)
    if scale.space == "expression":
        counts = counts * steps[which][:, None]
        counts = np.log1p(counts) if scale.log1p else counts
    return torch.from_numpy(counts).to(x)


def mean_log(means: np.ndarray, step: float) -> np.ndarray:
    """``E log(1 + step K)`` for Poisson counts K of ``means`` (n,) > 0.

    By ``log(1 + y) = integral of (1 - e^(-y v)) e^(-v) / v`` over v > 0, of which the mean over K has a closed form;
    with v = e^w the trapezoidal rule converges faster than any power.
    """
    low = -18 - np.log(max(1.0, float(means.max()) * step))
    w = np.arange(low, 4, 0.1)
    v = np.exp(w)
    inside = -np.expm1(np.outer(means, np.expm1(-step * v)))
    return 0.1 * (inside @ np.exp(-v))


def _rates(expected: np.ndarray, step: float) -> np.ndarray:
    """The means of Poisson counts K for which ``E log(1 + step K)`` is ``expected`` (n, D) >= 0."""
    last = max(float(expected.max()), 1.0)
    grid = np.exp(np.linspace(-12, last + 1, 400)) / step
    while mean_log(grid[-1:], step)[0] < last:  # few molecules: the logarithm's mean lies far below that of the mean
        grid = np.append(grid, 2 * grid[-1])
    grid = np.concatenate([[0.0], grid])
    return np.interp(expected, np.concatenate([[0.0], mean_log(grid[1:], step)]), grid)


def poisson_quantile(chance: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The smallest k with ``P(K <= k) >= chance``, of Poisson counts of ``means`` >= 0; the same shapes, float64."""
    from scipy.special import pdtr, pdtrik  # a tenth of a second to import

    counts = np.zeros_like(means)
    some = chance > np.exp(-means)  # most are none
    found = np.ceil(pdtrik(chance[some], means[some]))
    counts[some] = found - (pdtr(found - 1, means[some]) >= chance[some])  # the inverse is rounded
    return counts


def var_facts(var: Any) -> dict[str, Any]:
    """The genes and all columns of a ``var`` table as JSON, from which :func:`var_table` builds an equal one."""
    columns = {}
    for name, values in var.items():
        entry: dict[str, Any] = {"dtype": str(values.dtype), "values": _plain(values)}
        if hasattr(values, "cat"):
            entry |= {"categories": _plain(values.cat.categories), "ordered": bool(values.cat.ordered)}
        columns[str(name)] = entry
    return {"genes": [str(gene) for gene in var.index], "index_name": var.index.name, "columns": columns}


def _plain(values: Any) -> list[Any]:
    """As values of JSON; what is missing as None."""
    return [None if v != v or str(v) in ("<NA>", "NaT") else getattr(v, "item", lambda v=v: v)() for v in values]


def var_table(facts: Mapping[str, Any]) -> Any:
    """The ``var`` table of :func:`var_facts`."""
    import pandas as pd

    columns = {}
    for name, entry in facts["columns"].items():
        dtype = entry["dtype"]
        if dtype == "category":
            dtype = pd.CategoricalDtype(entry["categories"], ordered=entry["ordered"])
        columns[name] = pd.Series(entry["values"], facts["genes"], dtype=dtype)
    return pd.DataFrame(columns, index=pd.Index(facts["genes"], name=facts["index_name"]))


def obs_facts(columns: Mapping[str, Column]) -> dict[str, Any]:
    """What turns conditions back into columns of ``obs``: the names of categories, mean and deviation of numbers."""
    return {
        name: {"names": list(c.condition.names)}
        if isinstance(c.condition, Category)
        else {"mean": c.condition.mean[0], "std": c.condition.std[0]}
        for name, c in columns.items()
        if isinstance(c.condition, Category | Quantity)
    }


def obs_table(facts: Mapping[str, Any], conditions: Conditions, count: int, *, first: int = 0) -> Any:
    """The ``obs`` table of ``count`` cells: each condition by its names or in its own units, empty where not given.

    Cells are called by their numbers, from ``first``.
    """
    import pandas as pd

    columns = {}
    for name, values in conditions.items():
        if name not in facts:
            raise UserError(f"conditions has {name!r}, which the cells were not trained on; leave it out")
        if len(values) != count:
            raise UserError(f"conditions[{name!r}] must have a value for each of {count} cells, got {len(values)}")
        array, entry = values.detach().cpu().numpy(), facts[name]
        if "names" in entry:
            codes = np.where(array == NULL, -1, array)
            columns[name] = pd.Categorical.from_codes(codes.tolist(), categories=entry["names"])
        else:
            columns[name] = array.astype(np.float64).reshape(count) * entry["std"] + entry["mean"]
    return pd.DataFrame(columns, index=pd.Index([f"generated-{first + i}" for i in range(count)]))


def to_counts(x: Tensor, facts: CellsMetadata, generator: Generator = None) -> Tensor:
    """Counts (B, D) of expression x (B, D), non-negative, and whole where the training counts were.

    The library size of each cell is drawn from the 101 stored quantiles of the training cells; without a generator
    it is their median. ``facts`` are those of ``Cells.metadata``. Raises UserError where x is counts by them already.
    """
    if facts["space"] == "counts":
        raise UserError("the flow was trained to give counts, so x is counts already; take x as it is")
    scale = Expression(**facts["expression"])
    if generator is None or scale.target_sum is None:
        return scale.counts(x)
    u = random.uniform((len(x),), generator, device=x.device).cpu().numpy()
    sizes = np.interp(u, np.linspace(0, 1, len(facts["library_quantiles"])), facts["library_quantiles"])
    return scale.counts(x, x.new_tensor(sizes))


def write_h5ad(
    path: str | os.PathLike[str],
    x: Tensor,
    facts: CellsMetadata,
    *,
    conditions: Conditions | None = None,
    space: Space | None = None,
    generator: Generator = None,
    notes: Mapping[str, Any] | None = None,
    first: int = 0,
) -> None:
    """Write cells x (n, D), in the data units of training, as an .h5ad file with the training data's ``var``.

    Args:
        path: the file, replaced whole if it is there.
        x: as ``transform.inverse`` gives them, in the space ``facts["space"]``.
        facts: of ``Cells.metadata``.
        conditions: as the network takes them; they become columns of ``obs`` by name and in their own units.
        space: "expression" or "counts"; by default as x is. From expression to counts, see :func:`to_counts`.
        generator: draws library sizes; without it cells have the median size.
        notes: plain values for ``uns["advect"]``, beside space, target_sum and log1p.
        first: the number by which the first cell is called.

    Raises:
        UserError: x, its conditions or the space do not fit the facts.
    """
    anndata = optional_import("anndata", "cells")
    from scipy.sparse import csr_matrix

    genes = facts["var"]["genes"]
    if x.ndim != 2 or x.shape[1] != len(genes):
        raise UserError(f"x must have shape (n, {len(genes)}), a column for each gene, got {tuple(x.shape)}")
    space = space or facts["space"]
    if space not in ("expression", "counts"):
        raise UserError(f"space must be 'expression' or 'counts', got {space!r}")
    if space != facts["space"]:
        if space == "expression":
            raise UserError("space is 'expression', but the flow was trained to give counts; leave space out")
        x = to_counts(x, facts, generator)
    values: Any = x.detach().float().cpu().numpy()
    if np.count_nonzero(values) < values.size / 2:
        values = csr_matrix(values)
    scale = facts["expression"]
    uns = {"space": space, "log1p": scale["log1p"], "target_sum": scale["target_sum"] or 0.0, **(notes or {})}
    cells = anndata.AnnData(
        X=values,
        obs=obs_table(facts["obs"], conditions or {}, len(x), first=first),
        var=var_table(facts["var"]),
        uns={"advect": uns},
    )
    atomic_write(Path(path), cells.write_h5ad)
