"""Holes: entries that samples of a data set lack, NaN in ``Batch.x1``."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import without_padding
from advect.data.base import Split, Subset

if TYPE_CHECKING:
    from advect.data.base import Dataset

logger = logging.getLogger(__name__)

D = TypeVar("D", bound="Dataset")


@dataclass(frozen=True, eq=False)
class Holes:
    """Where a data set has holes, and which samples are complete.

    Attributes:
        train, held_out: (n,) and (m,) places of the complete samples of each split.
        rows, entries: numbers of samples with holes, and of holes.
        of_rows, of_entries: numbers of all.
    """

    train: np.ndarray
    held_out: np.ndarray
    rows: int
    entries: int
    of_rows: int
    of_entries: int

    @classmethod
    def find(cls, dataset: Dataset) -> Holes | None:
        """Those of a data set, read as a whole; None without any.

        Raises UserError for a sample without any entry, and an entry that no training sample has.
        """
        numbers, groups = dataset.modality.groups.unique(return_inverse=True)  # a constant column has no element
        (train, own), (held_out, others) = (_lost(split, groups) for split in (dataset.train, dataset.held_out))
        for split, lost, real in ((dataset.train, train, own), (dataset.held_out, held_out, others)):
            if len(empty := np.flatnonzero((lost | ~real).all(1))):
                row = split.row_names(empty[:1])[0]
                raise UserError(f"{row} of {dataset.name} has no value at all; remove such rows")
        if train.all(0).any():
            entry = dataset.modality.entry_name(int(numbers[int(train.all(0).argmax())]))
            raise UserError(f"no training row of {dataset.name} has {entry}; leave it out, or give rows that have it")
        both = np.concatenate([train, held_out])
        if not both.any():
            return None
        complete = [np.flatnonzero(~lost.any(1)) for lost in (train, held_out)]
        count = int(own.sum() + others.sum())
        return cls(complete[0], complete[1], int(both.any(1).sum()), int(both.sum()), len(both), count)

    def words(self) -> str:
        """How many there are."""
        return f"holes in {self.rows:,} of {self.of_rows:,} rows, {self.entries:,} of {self.of_entries:,} entries"

    def complete(self, dataset: D) -> D:
        """The data set's complete samples, which have the law of all if entries are missing at random."""
        made = copy.copy(dataset)
        made.holes = None
        made.train, made.held_out = Subset(dataset.train, self.train), Subset(dataset.held_out, self.held_out)
        made.fingerprint = hashlib.sha256(f"{dataset.fingerprint} without holes".encode()).hexdigest()
        return made


def complete_rows(dataset: D) -> D:
    """``dataset.real`` of data with holes, saying so, else the data set. Raises UserError without complete rows."""
    if dataset.holes is None:
        return dataset
    made = dataset.holes.complete(dataset)
    if not len(made.train):
        raise UserError(f"{dataset.name} has {dataset.holes.words()}, and no complete row to compare samples with")
    logger.info(
        f"note: the data have {dataset.holes.words()}; samples are compared with complete rows alone,"
        f" {len(made.held_out):,} of {len(dataset.held_out):,} held out, {len(made.train):,} of"
        f" {len(dataset.train):,} to train on"
    )
    return made


def _lost(split: Split, groups: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whether each sample of a split lacks each entry, and whether it is no padding, both (N, G) bool."""
    flat, count = groups.flatten(), int(groups.max()) + 1
    any_of = lambda x: torch.zeros(len(x), count).index_add_(1, flat, x.flatten(1).float()).bool().numpy()
    parts = [(np.zeros((0, count), bool),) * 2]
    for first in range(0, len(split), 1024):
        batch = split.fetch(np.arange(first, min(first + 1024, len(split))))
        parts.append((any_of(batch.x1.isnan()), any_of(without_padding(torch.ones_like(batch.x1), batch.cond or {}))))
    lost, real = zip(*parts, strict=True)
    return np.concatenate(lost), np.concatenate(real)
