"""What is measured on a matrix of cells in passes over its rows: checks, moments, variable genes, components."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.data.cells_matrix import CellMatrix


@dataclass(frozen=True)
class Survey:
    """One pass over all cells: library sizes (N,), a digest (N,) of each, the range, and whether all are whole."""

    libraries: np.ndarray
    digests: np.ndarray
    lowest: float
    highest: float
    whole: bool


def survey(matrix: CellMatrix, where: str) -> Survey:
    """Measure a matrix. Raises UserError where it is empty or holds NaN or infinity."""
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
    return Survey(libraries, digests, lowest, highest, whole)


def _digests(rows: Any) -> list[bytes]:
    """A hash of the genes and values of each CSR row; hexadecimal, as an "S" array drops ending zeros."""
    genes, values, ends = rows.indices.astype("<i8"), rows.data.astype("<f4"), rows.indptr
    return [
        hashlib.blake2b(genes[a:b].tobytes() + values[a:b].tobytes(), digest_size=8).hexdigest().encode()
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]


def moments(matrix: CellMatrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (D,) of each gene over ``rows`` (n,), float64; the variance of a constant gene is 0."""
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
    """The smallest value > 0 in ``rows`` (n,) of a matrix; 0 where there is none, or some are negative."""
    values = [float(block.data.min()) for _, block in matrix.blocks(rows) if block.nnz]
    return max(0.0, min(values, default=0.0))


def most_variable(mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` genes, rising, whose dispersion stands out most among genes of like mean.

    The dispersion variance / mean of normalised counts, less the median of its bin and over its median absolute
    deviation, in 20 bins of equally many expressed genes, or fewer that hold 50 genes each (Zheng et al. 2017,
    "Massively parallel digital transcriptional profiling of single cells").

    Raises:
        UserError: fewer genes than asked for are expressed.
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
    """The first components V (k, D) and the variances (k,) along them, largest first, of ``rows`` (n,) of a matrix.

    A randomised block Krylov method on the covariance (Musco & Musco 2015, algorithm 2): each of ``passes`` + 1 passes
    multiplies a block of vectors by it, with the mean (D,) subtracted from the products and never from the rows.
    Each component's largest entry is positive. Variances are those of the n rows, divided by n.

    Raises:
        UserError: ``count`` components are more than the cells or genes allow.
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
    start = CounterRng(seed, 0, matrix.shape[1]).normal((matrix.shape[1], width), dtype=torch.float64).numpy()
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
