"""Matrices of cells by genes, read by rows: sparse ones are never made dense as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from advect.core.errors import UserError, did_you_mean

BLOCK = 4096
"""Rows that a pass over a matrix takes at a time."""


class CellMatrix(ABC):
    """Cells by genes (N, D), float32, handed out as CSR rows in canonical form: sorted, no zeros, no doubles."""

    shape: tuple[int, int]

    @abstractmethod
    def rows(self, indices: np.ndarray) -> Any:
        """The rows at ``indices`` (B,) int64, in that order, as a CSR matrix (B, D) of its own. Threads may ask."""

    @abstractmethod
    def columns(self, indices: np.ndarray) -> CellMatrix:
        """The matrix of these genes (d,), in that order."""

    def blocks(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """All rows at ``indices`` (n,), a block at a time: the block's indices and its rows."""
        for first in range(0, len(indices), BLOCK):
            part = indices[first : first + BLOCK]
            yield part, self.rows(part)


class InMemory(CellMatrix):
    """A CSR matrix in memory: 8 bytes for each value that is not zero."""

    def __init__(self, matrix: Any) -> None:
        self._matrix, self.shape = matrix, matrix.shape

    def rows(self, indices: np.ndarray) -> Any:
        return self._matrix[indices]

    def columns(self, indices: np.ndarray) -> InMemory:
        if np.array_equal(indices, np.arange(self.shape[1])):
            return self  # a copy would double the memory
        return InMemory(_canonical(self._matrix[:, indices]))


class Normalised(CellMatrix):
    """``log(1 + x * target_sum / library)`` of each value, with either part left out if asked.

    Args:
        matrix: counts (N, D).
        libraries: the sum (N,) of each cell's counts over all its genes; a cell without counts stays without.
        target_sum: what the counts are scaled to sum to; None for no scaling.
        log1p: whether the logarithm is taken.
    """

    def __init__(self, matrix: CellMatrix, libraries: np.ndarray, *, target_sum: float | None, log1p: bool) -> None:
        self._matrix, self._libraries, self._target_sum, self._log1p = matrix, libraries, target_sum, log1p
        self.shape = matrix.shape

    def rows(self, indices: np.ndarray) -> Any:
        rows = self._matrix.rows(indices)
        if self._target_sum is not None:
            sizes = np.where(self._libraries[indices] > 0, self._libraries[indices], 1)
            rows.data *= np.repeat(self._target_sum / sizes, np.diff(rows.indptr)).astype(np.float32)
        if self._log1p:
            np.log1p(rows.data, out=rows.data)
        return rows

    def columns(self, indices: np.ndarray) -> Normalised:
        matrix = self._matrix.columns(indices)
        return Normalised(matrix, self._libraries, target_sum=self._target_sum, log1p=self._log1p)


class OnDisk(CellMatrix):
    """A matrix in an open HDF5 file, of which nothing but the rows asked for is read (h5py lets one thread in)."""

    def __init__(self, stored: Any, columns: np.ndarray | None = None) -> None:
        self._stored, self._columns = stored, columns
        self._starts = stored["indptr"][:].astype(np.int64) if "indptr" in getattr(stored, "keys", list)() else None
        self._shape = tuple(int(n) for n in (stored.shape if self._starts is None else stored.attrs["shape"]))
        self.shape = (self._shape[0], self._shape[1] if columns is None else len(columns))

    def rows(self, indices: np.ndarray) -> Any:
        order, places = np.unique(indices, return_inverse=True)
        matrix = self._read(order)
        matrix = matrix if self._columns is None else matrix[:, self._columns]
        return _canonical(matrix[places])

    def columns(self, indices: np.ndarray) -> OnDisk:
        return OnDisk(self._stored, indices if self._columns is None else self._columns[indices])

    def _read(self, order: np.ndarray) -> Any:
        """The rows at ``order``, rising; neighbours are read at once."""
        from scipy.sparse import csr_matrix

        if not len(order):
            return csr_matrix((0, self._shape[1]), dtype=np.float32)
        runs = [(run[0], run[-1] + 1) for run in np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)]
        starts = self._starts
        if starts is None:
            return csr_matrix(np.concatenate([self._stored[a:b] for a, b in runs]).astype(np.float32))
        data = [self._stored["data"][starts[a] : starts[b]] for a, b in runs]
        genes = [self._stored["indices"][starts[a] : starts[b]] for a, b in runs]
        ends = np.concatenate([[0], np.cumsum(starts[order + 1] - starts[order])])
        values = np.concatenate(data).astype(np.float32)
        return csr_matrix((values, np.concatenate(genes), ends), shape=(len(order), self._shape[1]))


def _canonical(matrix: Any) -> Any:
    """The CSR matrix with each row sorted, doubles summed and stored zeros left out, in place."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def as_rows(matrix: Any, *, copy: bool = True) -> InMemory:
    """A matrix of any layout, dense or sparse, as float32 rows; it stays as it is unless ``copy`` is off."""
    from scipy.sparse import csr_matrix, issparse, vstack

    if issparse(matrix):
        return InMemory(_canonical(csr_matrix(matrix, dtype=np.float32, copy=copy)))
    parts = [csr_matrix(np.asarray(matrix[i : i + BLOCK], np.float32)) for i in range(0, len(matrix), BLOCK)]
    return InMemory(_canonical(vstack(parts, format="csr")))


def stored_matrix(file: Any, layer: str | None, *, backed: bool, where: str) -> CellMatrix:
    """X, or a layer, of an open .h5ad file, in memory or ``backed`` by the file.

    Raises:
        UserError: it is not there, or it is backed and stored by columns.
    """
    import h5py
    from anndata.io import read_elem

    layers = list(file["layers"]) if "layers" in file else []
    stored = file.get("X") if layer is None else file["layers"][layer] if layer in layers else None
    if stored is None or stored.attrs.get("encoding-type") == "null":
        raise UserError(_no_matrix(where.split(", layer ")[0], layer, layers))
    if not backed:
        return as_rows(stored if isinstance(stored, h5py.Dataset) else read_elem(stored), copy=False)
    if stored.attrs.get("encoding-type") == "csc_matrix":
        raise UserError(
            f"{where} is stored by columns, and backed=True reads rows; leave backed out or save it as a csr_matrix"
        )
    return OnDisk(stored)


def held_matrix(data: Any, layer: str | None) -> CellMatrix:
    """X, or a layer, of an AnnData object. Raises UserError where it is not there."""
    matrix = data.X if layer is None else data.layers.get(layer)
    if matrix is None:
        raise UserError(_no_matrix("the AnnData object", layer, list(data.layers)))
    return as_rows(matrix)


def _no_matrix(where: str, layer: str | None, layers: list[str]) -> str:
    if layer is None:
        return f"{where} has no X" + (f"; choose a layer from {', '.join(layers)}" if layers else "; it has no cells")
    fix = did_you_mean(layer, layers) if layers else "; it has none, leave layer out"
    return f"{where} has no layer {layer!r}{fix}"
