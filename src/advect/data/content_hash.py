"""Samples told apart by their content, so that exact copies of one land in the same split whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

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
