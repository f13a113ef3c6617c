"""Columns of ``obs`` as conditions, and control cells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator, Stream, mix, stream_seed, uniform
from advect.core.types import LENGTH, NULL, Batch, Category, Quantity
from advect.data.base import Split
from advect.data.cells.matrix import CellMatrix
from advect.data.transforms import Transform

EXAMPLES = 256
"""Rows that a Quantity keeps."""


@dataclass(frozen=True)
class Column:
    """One condition: its description and values, (N,) int64 or (N, 1) float32, standardised.

    ``labels`` are the categories in their own type, ``ordered`` those of an ordered categorical; ``dtype`` is that of
    the column in ``obs``.
    """

    condition: Category | Quantity
    values: np.ndarray
    labels: tuple[Any, ...] = ()
    dtype: str = ""
    ordered: bool = False


def column(obs: Any, name: str, argument: str) -> Any:
    """Column of obs. Raises UserError if it is missing."""
    if name not in obs.columns:
        fix = did_you_mean(name, map(str, obs.columns)) if len(obs.columns) else "; it has no columns"
        raise UserError(f"{argument} names {name!r}, which obs has not{fix}")
    return obs[name]


def read_columns(
    obs: Any, conditions: Sequence[str], continuous: Sequence[str], *, used: np.ndarray, train: np.ndarray
) -> dict[str, Column]:
    """Conditions by name; category names come from the cells ``used``, statistics from ``train``."""
    for argument, names in (("conditions", conditions), ("continuous", continuous)):
        if isinstance(names, str):
            raise UserError(f"{argument} must be a list of columns, got {names!r}; give [{names!r}]")
    twice = {name for name in conditions if name in continuous or list(conditions).count(name) > 1}
    if twice or LENGTH in (*conditions, *continuous):
        name = min(twice) if twice else LENGTH
        why = "is named twice" if twice else "is a name that sequences keep for themselves; rename the column"
        raise UserError(f"conditions: {name!r} {why}")
    columns = {name: _category(column(obs, name, "conditions"), used, train) for name in conditions}
    return columns | {name: _quantity(column(obs, name, "continuous"), used, train) for name in continuous}


def _category(values: Any, used: np.ndarray, train: np.ndarray) -> Column:
    """Category in pandas' categorical order, else sorted (numbers numerically); NaN and "" are missing."""
    given = values.notna().to_numpy() & (values.astype(str) != "").to_numpy()
    text = values.astype(str).to_numpy(dtype=object)
    present = set(text[used][given[used]])
    if not present:
        raise UserError(f"conditions: column {values.name!r} has no value in any cell; leave it out")
    if values.dtype.kind == "f" and len(present) > max(20, len(used) // 2):
        raise UserError(
            f"conditions: column {values.name!r} has {len(present)} different numbers in {len(used)} cells;"
            " give it to continuous instead"
        )
    order = (
        values.cat.categories.astype(str)
        if hasattr(values, "cat")
        else sorted(present, key=float if values.dtype.kind in "iuf" else None)
    )
    names = [name for name in order if name in present]
    number = {name: i for i, name in enumerate(names)}
    codes = np.array([number.get(t, NULL) if ok else NULL for t, ok in zip(text, given, strict=True)], np.int64)
    counts = np.bincount(codes[train][codes[train] >= 0], minlength=len(names))
    own = values.cat.categories if hasattr(values, "cat") else values[given].drop_duplicates()
    plain = {str(word): getattr(v, "item", lambda v=v: v)() for word, v in zip(own.astype(str), own, strict=True)}
    labels = tuple(plain[name] for name in names)
    if {type(label) for label in labels} - {str, int, float, bool}:
        labels = tuple(names)
    shares = tuple((counts / max(counts.sum(), 1)).tolist())
    ordered = bool(hasattr(values, "cat") and values.cat.ordered)
    return Column(Category(tuple(names), shares), codes, labels, str(values.dtype), ordered)


def _quantity(values: Any, used: np.ndarray, train: np.ndarray) -> Column:
    try:
        numbers = values.astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"continuous: column {values.name!r} does not hold numbers ({error}); give it to conditions"
        ) from error
    if np.isinf(numbers[used]).any():
        raise UserError(f"continuous: column {values.name!r} holds infinity; leave such values empty")
    known = numbers[train][~np.isnan(numbers[train])]
    if not len(known):
        raise UserError(f"continuous: column {values.name!r} has no value in any training cell; leave it out")
    mean, std = float(known.mean()), float(known.std()) or 1.0
    picks = known[np.linspace(0, len(known) - 1, min(len(known), EXAMPLES)).astype(int)]
    quantity = Quantity((str(values.name),), (mean,), (std,), tuple((float(v),) for v in picks))
    return Column(quantity, ((numbers - mean) / std).astype(np.float32)[:, None], dtype=str(values.dtype))


def split_control(control: str, columns: Any) -> tuple[str, str]:
    """Column and value of ``"column=value"``; the longest matching column, whose name may hold "="."""
    splits = [(control[:i], control[i + 1 :]) for i, letter in enumerate(control) if letter == "="]
    if not splits:
        raise UserError(f"control must be 'column=value', such as 'perturbation=control', got {control!r}")
    return next((split for split in reversed(splits) if split[0] in columns), splits[0])


def control_cells(obs: Any, control: str | None) -> np.ndarray:
    """Whether each cell (N,) is a control, by ``"column=value"``; None marks no cell.

    Raises:
        UserError: column or value is missing, or all cells are controls.
    """
    if control is None:
        return np.zeros(len(obs), dtype=bool)
    name, value = split_control(control, obs.columns)
    values = column(obs, name, "control")
    here = (values.notna() & (values.astype(str) == value)).to_numpy()
    if not here.any():
        present = sorted(set(values.dropna().astype(str)))
        raise UserError(f"control: no cell has {name} {value!r}{did_you_mean(value, present[:30])}")
    if here.all():
        raise UserError(f"control: all cells have {control}; the flow needs others to lead to")
    return here


def split_by_digest(digests: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted training and held-out cells, by a hash of each cell's digest and the seed.

    Equal cells share a side; the order of cells does not matter. Groups of equal cells are held out whole until the
    share is reached; a share > 0 leaves neither side empty if two cells differ.
    """
    kinds, which, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    if not held_out or len(kinds) < 2:
        return np.arange(len(digests)), np.arange(0)
    words = [int.from_bytes(hashlib.blake2b(kind, digest_size=8).digest()) for kind in kinds]
    order = sorted(range(len(kinds)), key=lambda i: stream_seed(seed, Stream.HELD_OUT, words[i]))
    before = np.cumsum(sizes[order]) - sizes[order]  # how many are held out when a group's turn comes
    taken = np.zeros(len(kinds), dtype=bool)
    taken[np.array(order)[before < round(len(digests) * held_out)]] = True
    taken[order[0]], taken[order[-1]] = True, False
    return np.flatnonzero(~taken[which]), np.flatnonzero(taken[which])


class Starts:
    """Control cells (m,) matched to cells (n,) by equal codes (m, g) and (n, g)."""

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
        """Draw a control for each cell at ``indices`` (B,); fixed without an rng."""
        if rng is None:
            u = np.array([mix(int(i)) for i in indices], dtype=np.float64) / 2**64
        else:
            u = uniform((len(indices),), rng, dtype=torch.float64).numpy()
        size = self._size[indices]
        return self._controls[self._first[indices] + np.minimum((u * size).astype(np.int64), size - 1)]


class CellSplit(Split):
    """Cells of an expression matrix.

    Args:
        matrix: expression (N, D) of all cells.
        cells: (n,) cells of this split.
        to_model: from expression to model units.
        columns: conditions of all cells, (N,) int64 or (N, 1) float32.
        starts: controls matched to the cells of the split, if any.
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

    def row_names(self, indices: np.ndarray) -> list[str]:
        return super().row_names(self.cells[indices])

    def rows(self, cells: np.ndarray) -> torch.Tensor:
        """Cells (B,) of the matrix in model units (B, *S)."""
        return self._to_model.forward(torch.from_numpy(self._matrix.rows(cells).toarray()))

    def expression(self, indices: np.ndarray) -> torch.Tensor:
        """Measured expression (B, D) at ``indices`` (B,), zeros included."""
        return torch.from_numpy(self._matrix.rows(self.cells[indices]).toarray())


def check_controls(cells: np.ndarray, starts: np.ndarray, control: str | None) -> None:
    """Raise UserError unless there are training cells and, with ``control``, training controls."""
    if not len(cells) or (control is not None and not len(starts)):
        raise UserError(
            f"{len(cells)} cells are left to train on and {len(starts)} controls ({control}) to start at;"
            " give more cells or a smaller held_out"
        )
