"""Splits that keep groups, or equal content, on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from advect.core.random import CounterRng, Stream, mix_each, stream_seed
from advect.data.base import check_share

TRAIN = frozenset({"train", "training"})
MEASURE = frozenset({"test", "testing", "val", "valid", "validation"})


def split_groups(groups: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted training and held-out indices, with no group on both sides.

    Groups are held out in random order; one larger than the remaining share is skipped, so a few large groups can
    leave the held-out part small or empty.

    Args:
        groups: (N,) int64 in 0 .. G - 1, the group of each sample.
        held_out: share to hold out, in [0, 1); at least one sample is allotted if it is > 0 and N >= 2.
        seed: seed of the order.

    Raises:
        UserError: the share is out of range.
    """
    check_share(held_out)
    n, counts = len(groups), np.bincount(groups)
    left = min(max(round(n * held_out), 1), n - 1) if held_out else 0
    chosen = np.zeros(len(counts), bool)
    for group in CounterRng(stream_seed(seed, Stream.HELD_OUT), 0, len(counts)).permutation().tolist():
        if not left:
            break
        if counts[group] <= left:
            chosen[group] = True
            left -= int(counts[group])
    held = chosen[groups]
    return np.flatnonzero(~held), np.flatnonzero(held)


def equal_rows(x: np.ndarray) -> np.ndarray:
    """Group (N,) of equal rows of x (N, K) real, in order of appearance; NaN equals NaN, -0.0 equals 0.0."""
    first, groups = _groups(row_hashes(x))
    for column in range(x.shape[1]):
        own = x[:, column]
        other = own[first][groups]
        if ((own != other) & ~((own != own) & (other != other))).any():  # two rows of one hash: once in 2^64 pairs
            same = np.where(np.isnan(x), np.nan, x) + 0.0
            rows = np.ascontiguousarray(same).view(np.dtype((np.void, same.itemsize * same.shape[1]))).ravel()
            return _groups(np.unique(rows, return_inverse=True)[1].reshape(-1))[1]
    return groups


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First places (G,) of distinct keys (N,) in order of appearance, and the group (N,) of each."""
    _, first, groups = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[groups.reshape(-1)]


def row_hashes(x: np.ndarray) -> np.ndarray:
    """64-bit hash (N,) uint64 of the values of each row of x (N, *S), real; equal rows (NaN, -0.0 too) have one."""
    hashes = np.zeros(len(x), np.uint64)
    for block in row_blocks(x):
        rows = x[block].reshape(block.stop - block.start, -1)
        if x.dtype.kind == "f":
            rows = rows.astype(np.float64) + 0.0
            rows[np.isnan(rows)] = np.nan
        else:
            rows = rows.astype(np.uint64 if x.dtype.kind == "u" else np.int64)
        for column in rows.view(np.uint64).T:
            mix_each(hashes[block], column)
    return hashes


def row_blocks(x: np.ndarray, size: int = 1 << 20) -> Iterator[slice]:
    """Consecutive slices of the rows of x (N, *S), of about ``size`` values each."""
    rows = max(size // max(x[:1].size, 1), 1)
    return (slice(i, min(i + rows, len(x))) for i in range(0, len(x), rows))


MIDDLE = 8192
"""Bytes of a file that, with its size, identify it."""


def file_digest(size: int, middle: bytes) -> bytes:
    """sha256 of a file's ``size`` and its middle :data:`MIDDLE` bytes.

    Copies have equal digests. Files that differ elsewhere only (never compressed images) share one and hence a side.
    """
    return hashlib.sha256(b"%d\0" % size + middle).digest()


def middle_of(size: int) -> int:
    """Offset of the :data:`MIDDLE` middle bytes of a file of ``size`` bytes."""
    return max(0, (size - MIDDLE) // 2)


def row_digests(x: np.ndarray) -> list[bytes]:
    """sha256 of each row's bytes of x (N, *S), read once, row by row."""
    return [hashlib.sha256(np.ascontiguousarray(row).reshape(-1).view(np.uint8).data).digest() for row in x]


def split_by_content(digests: Sequence[bytes], held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted training and held-out indices; digests that are low as a number in [0, 1) are held out.

    Copies share a side and new samples move no old one. If the share is not 0 and two samples differ, neither side is
    empty.

    Args:
        digests: one per sample, of 8 bytes or more.
        held_out: share held out, in [0, 1).
    """
    return split_by_places(np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64), held_out)


def split_by_places(places: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`split_by_content`, by numbers (N,) uint64."""
    if not held_out or len(places) < 2 or (low := places.min()) == (high := places.max()):
        return np.arange(len(places)), np.arange(0)
    rest = (places == low) | ((places.astype(np.float64) < held_out * 2.0**64) & (places != high))
    return np.flatnonzero(~rest), np.flatnonzero(rest)


def fingerprint_of(parts: Iterable[bytes], about: str, labels: Mapping[str, np.ndarray]) -> str:
    """sha256 (hex) of the samples' digests or bytes, labels (N,) and the text ``about``."""
    whole = hashlib.sha256(about.encode())
    for part in parts:
        whole.update(part)
    for name in sorted(labels):
        whole.update(name.encode() + np.ascontiguousarray(labels[name], np.int64).tobytes())
    return whole.hexdigest()


def official_split(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Indices below a folder "train" and below "test" or "val"; None for other layouts."""
    tops = [parts[0].lower() if len(parts) > 1 else "" for parts in below_the_common(names)]
    if not (set(tops) & TRAIN and set(tops) & MEASURE and set(tops) <= TRAIN | MEASURE):
        return None
    train = np.array([top in TRAIN for top in tops])
    return np.flatnonzero(train), np.flatnonzero(~train)


def below_the_common(names: Sequence[str]) -> list[list[str]]:
    """Parts of each path without common leading folders, which archives often add."""
    paths = [name.split("/") for name in names]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == paths[0][shared] for parts in paths):
        shared += 1
    return [parts[shared:] for parts in paths]
