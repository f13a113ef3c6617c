"""Copies in data sets: samples that repeat an earlier one, and data sets without them."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from advect.core.types import NULL, Category, Condition, Length
from advect.data.base import Dataset, Split, Subset
from advect.data.holes import Holes
from advect.data.repeats import COLUMNS, beyond_chance, evenly_spaced, repeated_rows
from advect.distributed.context import progress_bar

D = TypeVar("D", bound=Dataset)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Samples that repeat an earlier one in values and conditions, as the network sees them, beyond coincidence.

    Samples are numbered 0 .. N - 1, those of the training split before those held out, each in the data's order.

    Attributes:
        looked: number of samples compared.
        equal: number whose values are those of an earlier one, by coincidence or not.
        otherwise: names of those that are no coincidence, but have other conditions than the earlier ones.
        train: size of the training split.
        places, first: (K,) copies, and the sample that each repeats, which is no copy itself.
        names, first_names: their file names or rows in the data.
    """

    looked: int
    equal: int
    otherwise: list[str]
    train: int
    places: np.ndarray
    first: np.ndarray
    names: list[str]
    first_names: list[str]

    def __len__(self) -> int:
        return len(self.places)

    def words(self) -> str:
        """How many there are, and of which split."""
        held_out = int((self.places >= self.train).sum())
        what = "1 sample is a copy" if len(self) == 1 else f"{len(self):,} samples are copies"
        return f"{what} of an earlier one ({len(self) - held_out:,} to train on, {held_out:,} held out)"

    def examples(self, count: int = 3) -> str:
        """The first few, in words."""
        pairs = zip(self.names[:count], self.first_names, strict=False)
        return ", ".join(f"{name} = {first}" for name, first in pairs)

    def to_csv(self) -> str:
        """All as CSV: each copy with the split it is in, and what it repeats."""
        text, parts = io.StringIO(), ("training", "held out")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["copy", "copy is", "repeats", "which is"])
        for name, place, first, other in zip(self.names, self.places, self.first_names, self.first, strict=True):
            rows.writerow([name, parts[int(place >= self.train)], first, parts[int(other >= self.train)]])
        return text.getvalue()


def find_copies(dataset: Dataset, look: int | None = None) -> Copies:
    """Copies among all samples of both splits, or among at most ``look`` evenly spaced ones of each."""
    return _find(dataset, look)[0]


def without_copies(dataset: D) -> D:
    """The data set without samples that repeat an earlier one; the splits otherwise stay.

    Of equal samples the first in the data's order stays, and one to train on rather than one held out. Frequencies
    of conditions are counted anew; the transform stays. The fingerprint tells the samples left out.
    """
    copies, seen = _find(dataset, None)
    made = copy.copy(dataset)
    made.copies = copies
    if not len(copies):
        return made
    kept = np.delete(np.arange(len(dataset.train) + len(dataset.held_out)), copies.places)
    train, rest = kept[kept < copies.train], kept[kept >= copies.train] - copies.train
    made.__dict__.pop("modality", None)  # made of the spec
    made.train, made.held_out = Subset(dataset.train, train), Subset(dataset.held_out, rest)
    conditions = {name: _counted(c, seen[name][train]) for name, c in dataset.spec.conditions.items()}
    made.spec = replace(dataset.spec, conditions=conditions)
    told = f"{dataset.fingerprint} without {copies.places.tolist()}"
    made.fingerprint = hashlib.sha256(told.encode()).hexdigest()
    made.holes = None if dataset.holes is None else Holes.find(made)
    return made


def _counted(condition: Condition, values: np.ndarray) -> Condition:
    """Condition with the frequencies of values (N, ...)."""
    match condition:
        case Category():
            counts = np.bincount(values[values != NULL], minlength=len(condition.names))
        case Length():
            counts = np.bincount(values - 1, minlength=len(condition.frequencies))
        case _:
            return condition
    return replace(condition, frequencies=tuple((counts / max(counts.sum(), 1)).tolist()))


def _find(dataset: Dataset, look: int | None) -> tuple[Copies, dict[str, np.ndarray]]:
    """Copies among the samples looked at, and the conditions of these samples."""
    sizes = len(dataset.train), len(dataset.held_out)
    places = [evenly_spaced(n, n if look is None else look) for n in sizes]
    where = np.concatenate([places[0], sizes[0] + places[1]])
    digests, seen = _read(dataset, *places)
    for i in np.flatnonzero(_unreadable(dataset, where)).tolist():  # others stand in for them
        digests[i] = (b"%d" % i, b"%d" % i)
    groups, whole = (_numbered(some) for some in zip(*digests, strict=True))
    repeated, first, some = repeated_rows(groups)
    copied = np.zeros(len(groups), bool)
    if len(repeated):
        own, width, filled = _values(dataset, where[first])
        counts = np.bincount(groups)[repeated]
        apart = beyond_chance(_values(dataset, where[some])[0], own, counts, len(groups), width=width, filled=filled)
        copied = np.isin(groups, repeated[apart])
        copied[first] = False
    leader = np.unique(whole, return_index=True)[1][whole]
    again = leader < np.arange(len(groups))
    later, earlier = where[copied & again], where[leader[copied & again]]
    return Copies(
        looked=len(groups),
        equal=int((np.bincount(groups) - 1).sum()),
        otherwise=_names(dataset, where[copied & ~again]),
        train=sizes[0],
        places=later,
        first=earlier,
        names=_names(dataset, later),
        first_names=_names(dataset, earlier),
    ), seen


def _unreadable(dataset: Dataset, places: np.ndarray) -> np.ndarray:
    """Whether the samples (B,) are files that could not be read."""
    found = getattr(dataset, "unreadable", None)
    lost = np.zeros(len(places), bool)
    if not found:
        return lost
    n = len(dataset.train)
    for split, mine in ((dataset.train, places < n), (dataset.held_out, places >= n)):
        if (files := split.files) is not None:
            rows = files.rows[places[mine] - (0 if split is dataset.train else n)]
            lost[mine] = [files.store.title(int(row)) in found for row in rows]
    return lost


def _numbered(digests: Sequence[bytes]) -> np.ndarray:
    """Number of each distinct digest, in the order of its first."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], np.int64)


def _blocks(dataset: Dataset, train: np.ndarray, held_out: np.ndarray) -> Iterator[tuple[Split, np.ndarray]]:
    for split, places in ((dataset.train, train), (dataset.held_out, held_out)):
        yield from ((split, places[i : i + 256]) for i in range(0, len(places), 256))


def _read(dataset: Dataset, *places: np.ndarray) -> tuple[list[tuple[bytes, bytes]], dict[str, np.ndarray]]:
    """Digests of the samples at these places of each split, without and with conditions, and the conditions."""

    def look(block: tuple[Split, np.ndarray]) -> tuple[list[tuple[bytes, bytes]], dict[str, np.ndarray]]:
        batch = block[0].fetch(block[1])
        cond = {name: value.numpy() for name, value in sorted((batch.cond or {}).items())}
        x, *others = (v.reshape(len(v), -1) + 0 for v in (batch.x1.numpy(), *cond.values()))  # -0.0 equals 0.0
        digests = []
        for i, row in enumerate(x):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16)
            values = digest.digest()
            digest.update(b"".join(other[i].tobytes() for other in others))
            digests.append((values, digest.digest()))
        return digests, cond

    digests: list[tuple[bytes, bytes]] = []
    conditions: list[dict[str, np.ndarray]] = []
    total = sum(map(len, places))
    with ThreadPoolExecutor(4) as pool, progress_bar(total, "comparing samples", "sample", leave=False) as bar:
        for some, cond in pool.map(look, _blocks(dataset, *places)):
            digests += some
            conditions.append(cond)
            bar.update(len(some))
    return digests, {name: np.concatenate([cond[name] for cond in conditions]) for name in conditions[0]}


def _values(dataset: Dataset, places: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Samples at increasing places in data units: at most COLUMNS of their columns (R, K), the number of all, and
    whether a row (R,) has a value other than zero.
    """
    n, rows, filled, width = len(dataset.train), [], [], 0
    for split, some in _blocks(dataset, places[places < n], places[places >= n] - n):
        x = dataset.transform.inverse(split.fetch(some).x1).flatten(1).double().cpu().numpy()
        filled.append((np.nan_to_num(x) != 0).any(axis=1))
        width = x.shape[1]
        rows.append(x[:, evenly_spaced(width, COLUMNS)])
    return np.concatenate(rows), width, np.concatenate(filled)


def _names(dataset: Dataset, places: np.ndarray) -> list[str]:
    n = len(dataset.train)
    names = [dataset.train.row_names(places[places < n]), dataset.held_out.row_names(places[places >= n] - n)]
    queue = [iter(some) for some in names]
    return [next(queue[int(place >= n)]) for place in places.tolist()]
