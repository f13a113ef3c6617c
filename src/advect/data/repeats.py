"""Repeated rows: copies, which must share a side of a split, or rows equal by coincidence."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from advect.core.random import CounterRng, Stream, mix_each, stream_seed, uniform
from advect.core.types import NULL, Category, Condition, Length
from advect.data.base import Dataset, Split, Subset, check_share
from advect.data.splits import equal_rows, row_hashes, split_by_places
from advect.distributed.context import progress_bar

D = TypeVar("D", bound=Dataset)

SAMPLED, COLUMNS = 2000, 256
"""Maximum rows and columns used to estimate frequencies."""

CHANCE = 0.1
"""Rows are copies if independent columns would give at most this share of the equal pairs."""

LONG = 16
"""Columns (such as pixels) from which equality is significant even without measured values."""

COMMON = 0.2
"""Rows that make up a larger share of the data are common, not copies."""


def copied(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Whether each row (N,) of x (N, K) belongs to a group of copies.

    Equal rows are copies if they are long or hold a measured value, and independent columns with their own frequencies
    would hardly give so many: at most ``CHANCE`` of those marked (Benjamini & Hochberg 1995). Rows of zeros and very
    common rows are not copies.

    Args:
        x: real numbers; NaN counts as a value.
        groups: (N,) int64 in 0 .. G - 1, the group of equal rows of each row.
    """
    repeated, first, some = _repeated(groups)
    if not len(repeated):
        return np.zeros(len(x), bool)
    columns = evenly_spaced(x.shape[1], COLUMNS)
    own, filled = x[first], (np.nan_to_num(x[first]) != 0).any(axis=1)
    counts = np.bincount(groups)[repeated]
    apart = _beyond_chance(x[np.ix_(some, columns)], own[:, columns], counts, len(x), width=x.shape[1], filled=filled)
    return np.isin(groups, repeated[apart])


def _repeated(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of several rows, of rows in ``groups`` (N,), the first row of each, and first rows of at most SAMPLED."""
    first = np.unique(groups, return_index=True)[1]
    repeated = np.flatnonzero(np.bincount(groups) > 1)
    return repeated, first[repeated], first[evenly_spaced(len(first), SAMPLED)]


def _beyond_chance(
    some: np.ndarray, own: np.ndarray, counts: np.ndarray, n: int, *, width: int, filled: np.ndarray
) -> np.ndarray:
    """Which of R repeated rows are copies.

    Args:
        some: distinct rows (m, K), of n, for the frequencies of values.
        own: the repeated rows (R, K), each of which comes ``counts`` (R,) times.
        width: number of columns, of which these K are a part.
        filled: whether a repeated row (R,) has a value other than zero.
    """
    found = [_shares(column, mine) for column, mine in zip(some.T, own.T, strict=True)]
    log_chance = sum(np.log(share) for share, _ in found) * (width / len(found))
    long = filled & (width >= LONG) | np.any([real for _, real in found], 0)
    # The expected number of other rows that equal this one.
    chance = n * np.exp(np.minimum(log_chance, 0)) / (counts - 1)
    apart = np.flatnonzero(long & (counts <= max(10, COMMON * n)))
    apart = apart[np.argsort(chance[apart])]
    # Coincidence would give n * chance / 2 pairs as unlikely as this one or more.
    fits = np.flatnonzero(n * chance[apart] / 2 < CHANCE * (1 + np.arange(len(apart))))
    return apart[: fits[-1] + 1 if len(fits) else 0]


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most ``most`` evenly spaced integers in 0 .. n - 1, (k,) int64."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)) if n else np.arange(0)


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
    groups, whole = (_numbered(some) for some in zip(*digests, strict=True))
    repeated, first, some = _repeated(groups)
    copied = np.zeros(len(groups), bool)
    if len(repeated):
        own, width, filled = _values(dataset, where[first])
        counts = np.bincount(groups)[repeated]
        apart = _beyond_chance(_values(dataset, where[some])[0], own, counts, len(groups), width=width, filled=filled)
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


def _shares(column: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimated frequency (R,) of the values ``own`` (R,) from distinct rows (m,), and which are measured.

    Measured values are rare values of a column that hardly repeats any.
    """
    m = len(column)
    values, counts = np.unique(column, return_counts=True)
    place = np.searchsorted(values, own).clip(max=len(values) - 1)
    seen = np.where((values[place] == own) | (np.isnan(values[place]) & np.isnan(own)), counts[place], 1)
    # A value that was seen once is as rare as rows that agree in such values.
    alone = max((counts * (counts - 1)).sum() / max(m * (m - 1), 1), m**-2.0, _rounded(values, column))
    share = np.where(seen > 1, seen / m, min(alone, 1 / m))
    return share, (seen <= max(1, m / 100)) & (len(values) > m / 2) & (np.nan_to_num(own) != 0)


def _rounded(values: np.ndarray, column: np.ndarray) -> float:
    """Chance that two values of a column (m,) agree because they are rounded; 0 unless ``values`` lie on a grid."""
    gaps = np.diff(values[np.isfinite(values)])
    if len(gaps) < 2:
        return 0.0
    steps = gaps / gaps.min()
    low, high = np.nanquantile(column, [0.25, 0.75])
    # The integral of the square of a normal density is 0.38 divided by its interquartile range.
    return float(0.38 * gaps.min() / (high - low)) if (abs(steps - steps.round()) < 1e-3).all() and high > low else 0.0


def split_rows(x: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted training and held-out rows, (n,) and (m,), of x (N, K) float64.

    Copies share a side. Other rows are stratified by the rarest value of their columns of few values, so rare values
    reach both sides.

    Args:
        x: NaN is a missing value.
        held_out: share to hold out, in [0, 1); at least one row if it is > 0 and N >= 2.
        seed: seed of the order.

    Raises:
        UserError: the share is out of range.
    """
    check_share(held_out)
    n = len(x)
    if not held_out or n < 2:
        return np.arange(n), np.arange(0)
    groups, stratum = equal_rows(x), _rarest(x)
    copies = copied(x, groups)
    if not copies.any():
        return _stratified(stratum, held_out, seed=seed)
    _, first, groups = np.unique(
        np.where(copies, groups, groups.max() + 1 + np.arange(n)), return_index=True, return_inverse=True
    )
    # Of copies one decides for all.
    _, held = _stratified(stratum[first], held_out, seed=seed)
    rest = np.isin(groups.reshape(-1), held)
    return np.flatnonzero(~rest), np.flatnonzero(rest)


def _rarest(x: np.ndarray) -> np.ndarray:
    """Stratum (N,) of each row: its rarest value among columns of few values."""
    n = len(x)
    least, stratum = np.full(n, n + 1), np.zeros(n, np.int64)
    for column in range(x.shape[1]):
        few = max(2, n**0.5)
        if len(np.unique(x[: 4 * int(few), column])) > few:
            continue  # a column of numbers
        values = np.unique(x[:, column])
        if len(values) > few:
            continue
        place = np.searchsorted(values, x[:, column])
        counts = np.bincount(place)
        own = counts[place]
        stratum = np.where(own < least, place * x.shape[1] + column + 1, stratum)
        least = np.minimum(least, own)
    return stratum


def _stratified(stratum: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Systematic sample from a random order within strata (N,): sorted rest and held-out indices."""
    n = len(stratum)
    rng = CounterRng(stream_seed(seed, Stream.HELD_OUT), 0, n)
    order = rng.permutation().numpy()
    order = order[np.argsort(stratum[order], kind="stable")]
    count = min(max(round(n * held_out), 1), n - 1)
    start = float(uniform((n,), rng)[0])
    held = order[np.floor((np.arange(count) + start) * n / count).astype(np.int64)]
    rest = np.zeros(n, bool)
    rest[held] = True
    return np.flatnonzero(~rest), np.flatnonzero(rest)


def split_vectors(x: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted training and held-out rows of x (N, D), by a hash of each; of equal rows only copies share a side.

    New rows move no old one, as in :func:`~advect.data.splits.split_by_content`.
    """
    places = row_hashes(x)
    if len(np.unique(places)) < len(places):
        groups = equal_rows(x)
        order = np.argsort(groups, kind="stable")
        starts = np.cumsum(np.bincount(groups)) - np.bincount(groups)
        again = np.empty_like(places)
        again[order] = np.arange(len(x)) - starts[groups[order]]
        moved = ~copied(x, groups) & (again > 0)
        places[moved] = mix_each(places[moved], again[moved])
    return split_by_places(places, held_out)


LOOKED_AT = 100_000
"""Most training rows compared with held-out ones, evenly spaced."""


def shared_rows(train: Split, held_out: Split) -> int:
    """Number of held-out rows that are copies of one of at most LOOKED_AT training rows."""
    known = set(_digests(train))
    digests = list(_digests(held_out))
    shared = np.array([digest in known for digest in digests], bool)
    if not shared.any() or math.prod(held_out.fetch(np.zeros(1, np.int64)).x1.shape[1:]) > COLUMNS:
        return int(shared.sum())
    x = np.concatenate([row.reshape(1, -1) for split in (held_out, train) for row in _rows(split)])
    return int((copied(x, equal_rows(x))[: len(shared)] & shared).sum())


def _digests(split: Split) -> Iterator[bytes]:
    return (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in _rows(split))


def _rows(split: Split) -> Iterator[np.ndarray]:
    """Evenly spaced rows (D,), at most LOOKED_AT."""
    places = np.linspace(0, len(split) - 1, min(len(split), LOOKED_AT)).round().astype(np.int64)
    for i in range(0, len(places), 256):
        yield from split.fetch(places[i : i + 256]).x1.flatten(1).numpy() + 0.0  # -0.0 equals 0.0
