"""What lies on which side of a split: groups together, equal content together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from advect.core.random import CounterRng, Stream, stream_seed
from advect.data.base import check_share


def split_groups(groups: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices to train on and those held out, both rising, no group on both sides.

    Groups are taken in random order for as long as the held-out part stays within its share; a group that is larger
    than what is left is passed over, so a few large groups can leave the held-out part small or empty.

    Args:
        groups: (N,) int64, 0 .. G - 1, the group of each sample.
        held_out: the share of the samples to hold out, in [0, 1); one sample at least where it is > 0 and N >= 2.
        seed: of the order.

    Raises:
        UserError: the share is out of its range.
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
    """The group (N,) of each row of x (N, K) float64, equal rows sharing one; NaN equals NaN, and -0.0 equals 0.0."""
    same = np.where(np.isnan(x), np.nan, x) + 0.0
    rows = np.ascontiguousarray(same).view(np.dtype((np.void, same.itemsize * same.shape[1]))).ravel()
    return np.unique(rows, return_inverse=True)[1].reshape(-1)


MIDDLE = 8192
"""How many bytes of a file tell it apart from another of the same size, bytes."""


def file_digest(size: int, middle: bytes) -> bytes:
    """What a file of ``size`` bytes is known by: sha256 of that and of the :data:`MIDDLE` bytes in its middle.

    Exact copies have equal digests. Files that differ in other places only, which no compressed image does, share one
    too: they are kept in one split, no more.
    """
    return hashlib.sha256(b"%d\0" % size + middle).digest()


def middle_of(size: int) -> int:
    """Where the :data:`MIDDLE` bytes in the middle of a file of ``size`` bytes begin."""
    return max(0, (size - MIDDLE) // 2)


def row_digests(x: np.ndarray) -> list[bytes]:
    """sha256 of the bytes of each row of x (N, *S), which is read once, a row at a time."""
    return [hashlib.sha256(np.ascontiguousarray(row).reshape(-1).view(np.uint8).data).digest() for row in x]


def split_by_content(digests: Sequence[bytes], held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices to train on and those held out, both rising: the ones whose digest, as a number in [0, 1), is low.

    A digest decides by itself, so that copies share a side and new samples move no old one. Where the share is
    not 0 and there are two different samples or more, each side has at least one.

    Args:
        digests: one a sample, of 8 bytes or more.
        held_out: the share kept for measuring, in [0, 1).
    """
    places = np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64)
    if not held_out or len(places) < 2 or (low := places.min()) == (high := places.max()):
        return np.arange(len(places)), np.arange(0)
    rest = (places == low) | ((places.astype(np.float64) < held_out * 2.0**64) & (places != high))
    return np.flatnonzero(~rest), np.flatnonzero(rest)


def fingerprint_of(digests: Sequence[bytes], about: str, labels: Mapping[str, np.ndarray]) -> str:
    """sha256, in hexadecimal, of the samples' digests, of their labels (N,) and of what else there is to say."""
    whole = hashlib.sha256(about.encode())
    for digest in digests:
        whole.update(digest)
    for name in sorted(labels):
        whole.update(name.encode() + np.ascontiguousarray(labels[name], np.int64).tobytes())
    return whole.hexdigest()
