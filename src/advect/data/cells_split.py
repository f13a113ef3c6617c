"""The cells of one split, made dense and brought to model units as they are fetched, with their starts."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from advect.core.errors import UserError
from advect.core.random import Generator, mix, uniform
from advect.core.types import Batch
from advect.data.cells_matrix import CellMatrix
from advect.data.source import Split
from advect.data.transforms import Transform


def split_by_digest(digests: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells to train on and those held out, both rising: by the hash of each cell's digest and the seed.

    Equal cells fall on one side, and the order of the cells does not matter. A share > 0 holds at least one cell out
    and trains on at least one, if two differ; groups of equal cells are held out whole until the share is reached.
    """
    kinds, which, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    if not held_out or len(kinds) < 2:
        return np.arange(len(digests)), np.arange(0)
    words = [int.from_bytes(hashlib.blake2b(kind, digest_size=8).digest()) for kind in kinds]
    order = sorted(range(len(kinds)), key=lambda i: mix(seed, words[i]))
    before = np.cumsum(sizes[order]) - sizes[order]  # how many are held out when a group's turn comes
    taken = np.zeros(len(kinds), dtype=bool)
    taken[np.array(order)[before < round(len(digests) * held_out)]] = True
    taken[order[0]], taken[order[-1]] = True, False
    return np.flatnonzero(~taken[which]), np.flatnonzero(taken[which])


class Starts:
    """Control cells (m,) to start at, for cells (n,) whose whole numbers (n, g) agree with theirs (m, g)."""

    def __init__(self, controls: np.ndarray, control_codes: np.ndarray, cell_codes: np.ndarray) -> None:
        together = np.concatenate([control_codes, cell_codes])
        groups = np.unique(together, axis=0, return_inverse=True)[1].reshape(-1)
        own, wanted = groups[: len(controls)], groups[len(controls) :]
        order = np.argsort(own, kind="stable")
        self._controls = controls[order]
        first = np.searchsorted(own[order], wanted)
        size = np.searchsorted(own[order], wanted, "right") - first
        self._first, self._size = np.where(size, first, 0), np.where(size, size, len(controls))

    def draw(self, indices: np.ndarray, rng: Generator) -> np.ndarray:
        """A control for each of the cells at ``indices`` (B,); always the same one without an rng."""
        if rng is None:
            u = np.array([mix(int(i)) for i in indices], dtype=np.float64) / 2**64
        else:
            u = uniform((len(indices),), rng, dtype=torch.float64).numpy()
        size = self._size[indices]
        return self._controls[self._first[indices] + np.minimum((u * size).astype(np.int64), size - 1)]


class CellSplit(Split):
    """Cells of a matrix of expression.

    Args:
        matrix: expression (N, D) of all cells.
        cells: those (n,) of this split.
        to_model: from expression to model units.
        columns: the conditions of all cells, (N,) int64 or (N, 1) float32.
        starts: where each cell of the split starts, if the data says so.
    """

    def __init__(
        self,
        matrix: CellMatrix,
        cells: np.ndarray,
        to_model: Transform,
        columns: dict[str, np.ndarray],
        starts: Starts | None = None,
    ) -> None:
        self.cells = cells
        self._matrix, self._to_model, self._starts = matrix, to_model, starts
        self._columns = {name: values[cells] for name, values in columns.items()}

    def __len__(self) -> int:
        return len(self.cells)

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        x0 = None if self._starts is None else self.rows(self._starts.draw(indices, rng))
        cond = {name: torch.from_numpy(values[indices]) for name, values in self._columns.items()}
        return Batch(self.rows(self.cells[indices]), cond or None, x0)

    def rows(self, cells: np.ndarray) -> torch.Tensor:
        """Any cells (B,) of the matrix in model units (B, *S)."""
        return self._to_model.forward(torch.from_numpy(self._matrix.rows(cells).toarray()))

    def expression(self, indices: np.ndarray) -> torch.Tensor:
        """The expression (B, D) of the samples at ``indices`` (B,) as it was measured, with all its zeros."""
        return torch.from_numpy(self._matrix.rows(self.cells[indices]).toarray())


def check_controls(cells: np.ndarray, starts: np.ndarray, control: str | None) -> None:
    """Raise UserError unless there are cells to train on, and controls to start at where asked."""
    if not len(cells) or (control is not None and not len(starts)):
        raise UserError(
            f"{len(cells)} cells are left to train on and {len(starts)} controls ({control}) to start at;"
            " give more cells or a smaller held_out"
        )
