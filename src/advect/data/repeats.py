"""Repeated rows: copies, which must share a side of a split, or rows equal by coincidence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from advect.core.random import CounterRng, Stream, mix_each, stream_seed, uniform
from advect.data.base import Split, check_share
from advect.data.splits import equal_rows, row_hashes, split_by_places

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
    repeated, first, some = repeated_rows(groups)
    if not len(repeated):
        return np.zeros(len(x), bool)
    columns = evenly_spaced(x.shape[1], COLUMNS)
    own, filled = x[first], (np.nan_to_num(x[first]) != 0).any(axis=1)
    counts = np.bincount(groups)[repeated]
    apart = beyond_chance(x[np.ix_(some, columns)], own[:, columns], counts, len(x), width=x.shape[1], filled=filled)
    return np.isin(groups, repeated[apart])


def repeated_rows(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of several rows, of rows in ``groups`` (N,), the first row of each, and first rows of at most SAMPLED."""
    first = np.unique(groups, return_index=True)[1]
    repeated = np.flatnonzero(np.bincount(groups) > 1)
    return repeated, first[repeated], first[evenly_spaced(len(first), SAMPLED)]


def beyond_chance(
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
