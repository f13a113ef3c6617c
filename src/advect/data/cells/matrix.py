"""Matrices of cells by genes, read by rows; sparse ones are never dense as a whole."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advect.core.errors import UserError, did_you_mean
from advect.core.random import CounterRng, Stream, stream_seed

RAW = "raw"
"""Layer name of ``AnnData.raw``, which has its own genes."""

BLOCK = 4096
"""Rows per block of a pass over a matrix."""


class CellMatrix(ABC):
    """Cells by genes (N, D) float32; rows are canonical CSR: sorted, without zeros or duplicates."""

    shape: tuple[int, int]

    @abstractmethod
    def rows(self, indices: np.ndarray) -> Any:
        """Rows at ``indices`` (B,) int64, in that order, as a new CSR matrix (B, D). Thread-safe."""

    @abstractmethod
    def columns(self, indices: np.ndarray) -> CellMatrix:
        """Matrix of the genes ``indices`` (d,), in that order."""

    def blocks(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Iterate over the rows at ``indices`` (n,) in blocks of indices and rows."""
        for first in range(0, len(indices), BLOCK):
            part = indices[first : first + BLOCK]
            yield part, self.rows(part)


class InMemory(CellMatrix):
    """CSR matrix in memory, 8 bytes per non-zero value."""

    def __init__(self, matrix: Any) -> None:
        self._matrix, self.shape = matrix, matrix.shape

    def rows(self, indices: np.ndarray) -> Any:
        return self._matrix[indices]

    def columns(self, indices: np.ndarray) -> InMemory:
        if np.array_equal(indices, np.arange(self.shape[1])):
            return self  # a copy would double the memory
        return InMemory(_canonical(self._matrix[:, indices]))


class Normalised(CellMatrix):
    """``log(1 + x * target_sum / library)``; scaling and logarithm are optional.

    Args:
        matrix: counts (N, D).
        libraries: (N,) sum of each cell's counts over all genes; cells without counts stay 0.
        target_sum: sum of the scaled counts; None for no scaling.
        log1p: whether to take the logarithm.
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
    """Matrix in an open HDF5 file; only requested rows are read (h5py serialises threads)."""

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
        """Rows at sorted ``order``; neighbours are read together."""
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
    """Sort rows, sum duplicates and drop stored zeros of a CSR matrix, in place."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def as_rows(matrix: Any, *, copy: bool = True) -> InMemory:
    """Any dense or sparse matrix as float32 rows; ``copy=False`` may modify it."""
    from scipy.sparse import csr_matrix, issparse, vstack

    if issparse(matrix):
        return InMemory(_canonical(csr_matrix(matrix, dtype=np.float32, copy=copy)))
    parts = [csr_matrix(np.asarray(matrix[i : i + BLOCK], np.float32)) for i in range(0, len(matrix), BLOCK)]
    return InMemory(_canonical(vstack(parts, format="csr")))


@contextmanager
def reading_h5ad(path: Path) -> Iterator[None]:
    """Context in which what h5py and anndata raise on a damaged file, errors of many kinds, is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not an .h5ad file, or a damaged one ({why}); write it again") from error


def stored_matrix(file: Any, layer: str | None, *, backed: bool, where: str) -> CellMatrix:
    """X, a layer or ``.raw`` of an open .h5ad file, in memory or ``backed`` by the file.

    Raises:
        UserError: it is missing, or backed and stored by columns.
    """
    import h5py
    from anndata.io import read_elem

    layers = list(file["layers"]) if "layers" in file else []
    raw = "raw" in file and "X" in file["raw"]
    place = "X" if layer is None else "raw/X" if is_raw(layer, layers) and raw else f"layers/{layer}"
    stored = file.get(place)
    if stored is None or stored.attrs.get("encoding-type") == "null":
        raise UserError(_no_matrix(where.split(", layer ")[0], layer, layers, raw=raw))
    if not backed:
        return as_rows(stored if isinstance(stored, h5py.Dataset) else read_elem(stored), copy=False)
    if stored.attrs.get("encoding-type") == "csc_matrix":
        raise UserError(
            f"{where} is stored by columns, and backed=True reads rows; leave backed out or save it as a csr_matrix"
        )
    return OnDisk(stored)


def held_matrix(data: Any, layer: str | None) -> CellMatrix:
    """X, a layer or ``.raw`` of an AnnData object, on disk if backed.

    Raises UserError if it is missing.
    """
    if layer is not None and is_raw(layer, data.layers) and data.raw is not None:
        matrix = data.raw.X
    else:
        matrix = data.X if layer is None else data.layers.get(layer)
    if matrix is None:
        raise UserError(_no_matrix("the AnnData object", layer, list(data.layers), raw=data.raw is not None))
    if getattr(matrix, "format", "") == "csr" and hasattr(matrix, "group"):
        return OnDisk(matrix.group)
    if hasattr(matrix, "to_memory"):  # backed, by columns
        matrix = matrix.to_memory()
    return OnDisk(matrix) if hasattr(matrix, "id") and hasattr(matrix, "file") else as_rows(matrix)


def is_raw(layer: str | None, layers: Iterable[str]) -> bool:
    """Whether ``layer`` means ``.raw``: no layer has that name."""
    return layer == RAW and RAW not in layers


def _no_matrix(where: str, layer: str | None, layers: list[str], *, raw: bool) -> str:
    layers = [*layers, *([RAW] if raw and RAW not in layers else [])]
    if layer is None:
        return f"{where} has no X" + (
            f"; choose a layer from {', '.join(layers)}" if layers else ", nor a layer; save counts in X"
        )
    fix = did_you_mean(layer, layers) if layers else "; it has none, leave layer out"
    return f"{where} has no layer {layer!r}{fix}"


@dataclass(frozen=True)
class MatrixStats:
    """Library sizes (N,) and digests (N,) of all cells, value range, and whether all values are whole."""

    libraries: np.ndarray
    digests: np.ndarray
    lowest: float
    highest: float
    whole: bool


def survey(matrix: CellMatrix, where: str) -> MatrixStats:
    """Measure a matrix in one pass. Raises UserError if it is empty or holds NaN or infinity."""
    if not all(matrix.shape):
        raise UserError(f"{where} is empty, its shape is {matrix.shape}; give at least one cell and one gene")
    libraries, digests = np.empty(matrix.shape[0]), np.empty(matrix.shape[0], "S16")
    lowest, highest, whole, bad, first = 0.0, 0.0, True, 0, -1
    for indices, rows in matrix.blocks(np.arange(matrix.shape[0])):
        finite = np.isfinite(rows.data)
        if not finite.all():
            first = int(indices[np.searchsorted(rows.indptr, finite.argmin(), "right") - 1]) if not bad else first
            bad += int((~finite).sum())
            continue
        libraries[indices] = np.asarray(rows.sum(1, dtype=np.float64)).reshape(-1)
        digests[indices] = _digests(rows)
        if rows.nnz:
            lowest, highest = min(lowest, float(rows.data.min())), max(highest, float(rows.data.max()))
            whole = whole and bool((rows.data == np.round(rows.data)).all())
    if bad:
        raise UserError(
            f"{where} holds {bad} NaN or infinite values, the first in cell {first};"
            " remove those cells or fill them in"
        )
    return MatrixStats(libraries, digests, lowest, highest, whole)


def _digests(rows: Any) -> list[bytes]:
    """Hex hash of genes and values per CSR row ("S" arrays drop trailing zero bytes)."""
    genes, values, ends = rows.indices.astype("<i8"), rows.data.astype("<f4"), rows.indptr
    return [
        hashlib.blake2b(genes[a:b].tobytes() + values[a:b].tobytes(), digest_size=8).hexdigest().encode()
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]


def moments(matrix: CellMatrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (D,) float64 of each gene over ``rows`` (n,); 0 variance for constant genes."""
    genes = matrix.shape[1]
    total, present = np.zeros(genes), np.zeros(genes)
    for _, block in matrix.blocks(rows):
        total += np.bincount(block.indices, block.data, genes)
        present += np.bincount(block.indices, minlength=genes)
    mean = total / len(rows)
    # From the differences: the mean of the squares less the square of the mean would cancel.
    square = (len(rows) - present) * mean**2
    for _, block in matrix.blocks(rows):
        square += np.bincount(block.indices, (block.data - mean[block.indices]) ** 2, genes)
    variance = square / len(rows)
    return mean, np.where(variance <= (1e-9 * mean) ** 2, 0, variance)


def least(matrix: CellMatrix, rows: np.ndarray) -> float:
    """Smallest value > 0 in ``rows`` (n,); 0 if there is none or some are negative."""
    values = [float(block.data.min()) for _, block in matrix.blocks(rows) if block.nnz]
    return max(0.0, min(values, default=0.0))


def most_variable(mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` genes, sorted, with the highest normalised dispersion.

    Dispersion variance / mean of normalised counts, less the median of its bin, divided by its median absolute
    deviation, in up to 20 equal bins of at least 50 expressed genes (Zheng et al. 2017, "Massively parallel digital
    transcriptional profiling of single cells").

    Raises:
        UserError: fewer than ``count`` genes vary.
    """
    expressed = np.flatnonzero((mean > 0) & (variance > 0))
    if not 1 <= count <= len(expressed):
        raise UserError(
            f"highly_variable must lie in 1 to {len(expressed)}, as many genes as vary in the training cells,"
            f" got {count}; 2000 is usual"
        )
    dispersion = variance[expressed] / mean[expressed]
    score = np.empty(len(expressed))
    for part in np.array_split(np.argsort(mean[expressed], kind="stable"), min(20, max(1, len(expressed) // 50))):
        middle = np.median(dispersion[part])
        spread = np.median(np.abs(dispersion[part] - middle))
        score[part] = (dispersion[part] - middle) / (spread or 1.0)
    return np.sort(expressed[np.argsort(-score, kind="stable")[:count]])


def principal_components(
    matrix: CellMatrix, rows: np.ndarray, mean: np.ndarray, count: int, *, seed: int = 0, passes: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """First components V (k, D) and their variances (k,), largest first, of ``rows`` (n,) of a matrix.

    Randomised block Krylov method on the covariance (Musco & Musco 2015, algorithm 2) in ``passes`` + 1 passes; the
    mean (D,) is subtracted from products, never from rows. Each component's largest entry is positive. Variances
    divide by n.

    Raises:
        UserError: ``count`` exceeds what the cells or genes allow.
    """
    limit = min(len(rows) - 1, matrix.shape[1])
    if not 1 <= count <= limit:
        shape = f"{len(rows)} training cells of {matrix.shape[1]} genes"
        raise UserError(f"pca must lie in 1 to {limit}, with {shape}, got {count}; 50 is usual")

    def covariance(v: np.ndarray) -> np.ndarray:
        product = np.zeros_like(v)
        for _, block in matrix.blocks(rows):
            product += block.T @ (block @ v)
        return product / len(rows) - np.outer(mean, mean @ v)

    width = min(count + 10, matrix.shape[1])
    start = (
        CounterRng(stream_seed(seed, Stream.TRUNCATED_SVD), 0, matrix.shape[1])
        .normal((matrix.shape[1], width), dtype=torch.float64)
        .numpy()
    )
    basis = np.linalg.qr(start)[0]
    krylov = basis[:, :0]
    for _ in range(passes):
        if krylov.shape[1] + width > matrix.shape[1]:
            break
        krylov = np.concatenate([krylov, basis], 1)
        basis = covariance(basis)
        for _ in range(2):  # once leaves the block only roughly orthogonal to what is there
            basis = np.linalg.qr(basis - krylov @ (krylov.T @ basis))[0]
    space = np.linalg.qr(np.concatenate([krylov, basis], 1))[0]
    values, vectors = np.linalg.eigh(space.T @ covariance(space))
    components = (space @ vectors[:, ::-1][:, :count]).T
    signs = np.sign(components[np.arange(count), np.abs(components).argmax(1)])
    return components * signs[:, None], values[::-1][:count].clip(min=0)
