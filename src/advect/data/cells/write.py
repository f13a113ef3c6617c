"""Write generated cells as .h5ad from stored metadata, without training data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from torch import Tensor
from tqdm import tqdm

from advect.core import random
from advect.core.bounds import Finite
from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write
from advect.core.random import Generator
from advect.core.records import guarded
from advect.core.types import NULL, Category, Condition, Conditions, Quantity
from advect.data.base import as_asked
from advect.data.cells.conditions import Column
from advect.data.cells.transform import Expression, Space
from advect.data.tables.columns import nullable

Value = str | bool | int | float | None


class ExpressionEntries(TypedDict):
    """Arguments of :class:`Expression`, which checks them."""

    space: Space
    target_sum: Finite | None
    log1p: bool
    library: NotRequired[Finite]
    non_negative: NotRequired[bool]
    integer: NotRequired[bool]
    smallest: NotRequired[Finite]


class VarColumn(TypedDict):
    """Type and values of a column of ``var``, and of categories all of them."""

    dtype: str
    values: list[Value]
    categories: NotRequired[list[Value]]
    ordered: NotRequired[bool]


class Var(TypedDict):
    """Genes and columns of ``var``."""

    genes: Annotated[list[str], Meta(min_length=1)]
    index_name: str | None
    columns: dict[str, VarColumn]


class ObsColumn(TypedDict):
    """Type of a column of ``obs``, and labels of categories, or mean and deviation of numbers."""

    dtype: str
    labels: NotRequired[Annotated[list[str | bool | int | float], Meta(min_length=1)]]
    ordered: NotRequired[bool]
    mean: NotRequired[Finite]
    std: NotRequired[Finite]


class CellsMetadata(TypedDict):
    """JSON that :func:`write_h5ad` needs beside samples.

    ``space`` is "expression" or "counts"; ``counted``: samples are expectations to draw counts around; ``expression``:
    arguments of :class:`Expression`; ``library_quantiles``: of training cells' library sizes; tables ``var`` and
    ``obs``.
    """

    space: Space
    counted: NotRequired[bool]
    expression: ExpressionEntries
    library_quantiles: Annotated[list[Annotated[float, Meta(ge=0, le=1e30)]], Meta(min_length=1)]
    var: Var
    obs: dict[str, ObsColumn]


def var_facts(var: Any) -> dict[str, Any]:
    """Genes and columns of a ``var`` table as JSON, inverted by :func:`var_table`."""
    columns = {}
    for name, values in var.items():
        entry: dict[str, Any] = {"dtype": str(values.dtype), "values": _plain(values)}
        if hasattr(values, "cat"):
            entry |= {"categories": _plain(values.cat.categories), "ordered": bool(values.cat.ordered)}
        columns[str(name)] = entry
    return {"genes": [str(gene) for gene in var.index], "index_name": var.index.name, "columns": columns}


def _plain(values: Any) -> list[Any]:
    """JSON values, None where missing."""
    import pandas as pd

    return [
        None if missing else getattr(v, "item", lambda v=v: v)()
        for v, missing in zip(values, pd.isna(values), strict=True)
    ]


def var_table(facts: Mapping[str, Any]) -> Any:
    """``var`` table from :func:`var_facts`."""
    import pandas as pd

    columns = {}
    for name, entry in facts["columns"].items():
        dtype = entry["dtype"]
        if dtype == "category":
            dtype = pd.CategoricalDtype(entry["categories"], ordered=entry["ordered"])
        columns[name] = pd.Series(entry["values"], facts["genes"], dtype=dtype)
    return pd.DataFrame(columns, index=pd.Index(facts["genes"], name=facts["index_name"]))


def obs_facts(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Categories, or mean and deviation of numbers, and their type, to restore columns of ``obs``."""
    return {
        name: {"labels": list(c.labels), "dtype": c.dtype, "ordered": c.ordered}
        if isinstance(c.condition, Category)
        else {"mean": c.condition.mean[0], "std": c.condition.std[0], "dtype": c.dtype}
        for name, c in columns.items()
        if isinstance(c.condition, Category | Quantity)
    }


def obs_table(facts: Mapping[str, Any], conditions: Conditions, count: int, *, first: int = 0) -> Any:
    """``obs`` table of ``count`` cells: conditions by name or in their own units, empty if missing.

    Cells are numbered from ``first``.
    """
    import pandas as pd

    columns = {}
    for name, values in conditions.items():
        if name not in facts:
            raise UserError(f"conditions has {name!r}, which the cells were not trained on; leave it out")
        if len(values) != count:
            raise UserError(f"conditions[{name!r}] must have a value for each of {count} cells, got {len(values)}")
        array, entry = values.detach().cpu().numpy(), facts[name]
        if "labels" in entry:
            columns[name] = _labels(np.where(array == NULL, -1, array).astype(np.int64), entry)
        else:
            columns[name] = _numbers(array.astype(np.float64).reshape(count), entry)
    return pd.DataFrame(columns, index=pd.Index([f"generated-{first + i}" for i in range(count)]))


def _labels(codes: np.ndarray, entry: Mapping[str, Any]) -> Any:
    """Categories of codes (n,), -1 where missing, in the type of the column of ``obs``; text is categorical."""
    import pandas as pd

    dtype, labels = entry["dtype"], entry["labels"]
    if dtype != "category" and isinstance(labels[0], int | float):  # booleans too
        values = pd.Series([None if code < 0 else labels[code] for code in codes], dtype=object)
        plain = isinstance(labels[0], float) or not (codes < 0).any()
        return values.astype(dtype if plain else "boolean" if isinstance(labels[0], bool) else nullable(dtype)).array
    return pd.Categorical.from_codes(codes.tolist(), categories=pd.Index(labels), ordered=entry["ordered"])


def _numbers(z: np.ndarray, entry: Mapping[str, Any]) -> Any:
    """Standardised numbers (n,) in the type of ``obs``; float64 where that holds whole numbers and z is not."""
    import pandas as pd

    x, dtype = as_asked(z * entry["std"] + entry["mean"], entry["mean"]), entry["dtype"]
    absent = np.isnan(x)
    if "float" in dtype.lower():
        return pd.Series(x).astype(dtype).array
    if not dtype.lower().startswith(("int", "uint")) or (x % 1)[~absent].any():
        return x
    range_ = np.iinfo(dtype.lower())
    if ((x < range_.min) | (x > range_.max)).any():
        return x
    return pd.Series(x).astype(nullable(dtype) if absent.any() else dtype).array


def check_tables(facts: CellsMetadata, conditions: Mapping[str, Condition]) -> None:
    """Raise UserError unless ``var``, and ``obs`` of any ``conditions``, can be written; a card's may be at odds.

    Both are written to memory, which takes a moment.
    """
    import h5py
    import torch
    from anndata.io import write_elem

    sizes = {name: len(c.names) if isinstance(c, Category) else 1 for name, c in conditions.items()}
    codes = {name: torch.arange(-1, max(sizes.values())).clamp(max=size - 1) for name, size in sizes.items()}
    count = max(sizes.values(), default=0) + 1

    def write() -> None:
        with h5py.File("cells", "w", driver="core", backing_store=False) as file:
            write_elem(file, "var", var_table(facts["var"]))
            write_elem(file, "obs", obs_table(facts["obs"], codes, count))
            write_elem(file, "whole", obs_table(facts["obs"], {name: v[1:] for name, v in codes.items()}, count - 1))

    guarded(write, "the tables of genes and cells")


def to_counts(x: Tensor, facts: CellsMetadata, generator: Generator = None) -> Tensor:
    """Counts (B, D) of expression x (B, D), non-negative, and whole if the training counts were.

    Library sizes are drawn from the 101 stored quantiles; without a generator they are the median. ``facts`` is
    ``Cells.metadata``. Raises UserError if x is counts already.
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
    """Write cells x (n, D) in data units as an .h5ad file with the training data's ``var``.

    Args:
        path: file, replaced atomically.
        x: result of ``transform.inverse``, in the space ``facts["space"]``.
        facts: ``Cells.metadata``.
        conditions: as given to the network; written to ``obs`` by name and in their own units.
        space: "expression" or "counts"; default that of x. See :func:`to_counts`.
        generator: draws library sizes; None uses the median.
        notes: plain values for ``uns["advect"]``, beside space, target_sum and log1p.
        first: number of the first cell.

    Raises:
        UserError: x, its conditions or the space do not fit the metadata.
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


def join_h5ad(parts: Sequence[Path], path: Path, bar: tqdm) -> None:
    """Cells of files of :func:`write_h5ad` one after the other; X is read and written a part at a time."""
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    shapes, nonzero = [], 0
    for part in parts:
        x = _read(part, "X")
        shapes.append(x.shape)
        nonzero += x.nnz if hasattr(x, "nnz") else int(np.count_nonzero(x))
    shape = (sum(n for n, _ in shapes), shapes[0][1])
    with h5py.File(path, "w") as whole:
        with h5py.File(parts[0]) as first:
            whole.attrs.update(first.attrs)
            for name in first:
                if name not in ("X", "obs"):
                    first.copy(name, whole)
        write_elem(whole, "obs", pd.concat([_read(part, "obs") for part in parts]))
        if 2 * nonzero < shape[0] * shape[1]:
            _join_sparse(parts, whole.create_group("X"), shape, nonzero, bar)
        else:
            _join_dense(parts, whole.create_dataset("X", shape, np.float32), bar)


def _read(path: Path, name: str) -> Any:
    """One element of an .h5ad file."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(path) as file:
        element: Any = file[name]
        return read_elem(element)


def _join_sparse(parts: Sequence[Path], group: Any, shape: tuple[int, int], nonzero: int, bar: tqdm) -> None:
    """X as compressed rows."""
    from scipy.sparse import csr_matrix

    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    kind = np.int32 if max(nonzero, *shape) < 2**31 else np.int64
    indptr = group.create_dataset("indptr", (shape[0] + 1,), kind)
    indices, data = group.create_dataset("indices", (nonzero,), kind), group.create_dataset("data", (nonzero,), "f4")
    row = entry = 0
    for part in parts:
        x: Any = csr_matrix(_read(part, "X"))
        indptr[row + 1 : row + 1 + x.shape[0]] = x.indptr[1:].astype(kind) + entry
        indices[entry : entry + x.nnz], data[entry : entry + x.nnz] = x.indices, x.data
        row, entry = row + x.shape[0], entry + x.nnz
        bar.update()


def _join_dense(parts: Sequence[Path], data: Any, bar: tqdm) -> None:
    """X as an array."""
    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    row = 0
    for part in parts:
        x = _read(part, "X")
        data[row : row + x.shape[0]] = x.toarray() if hasattr(x, "toarray") else x
        row += x.shape[0]
        bar.update()
