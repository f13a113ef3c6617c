"""Splits of arrays, and what lies on which side: groups together, equal content together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from advect.core.random import CounterRng, Generator, Stream, stream_seed, uniform
from advect.core.types import Batch
from advect.data.base import Split, check_share
from advect.data.transforms import Transform


class PixelSplit(Split):
    """Some rows of an array x (N, *S), in data units; only what is fetched is read and converted.

    Args:
        x: (N, *S) of any real type, in memory or memory-mapped.
        rows: (n,) the rows that this split has.
        labels: for each condition, a whole number (N,) for every row of x.
        transform: to model units.
        flip: mirror half of the images (C, H, W) that are fetched with an rng.
    """

    def __init__(
        self,
        x: np.ndarray,
        rows: np.ndarray,
        labels: Mapping[str, np.ndarray],
        transform: Transform,
        *,
        flip: bool = False,
    ) -> None:
        self._x, self._rows, self._transform, self._flip = x, rows, transform, flip
        self._labels = {name: np.ascontiguousarray(values[rows], np.int64) for name, values in labels.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        x = np.array(self._x[self._rows[indices]])  # a copy in memory, also where x is mapped
        if self._flip and rng is not None:
            mirrored = uniform((len(indices),), rng).numpy() < 0.5
            x[mirrored] = x[mirrored, ..., ::-1]
        if x.dtype != np.uint8:  # PyTorch takes neither every width of whole numbers nor every order of bytes
            wide = x.dtype.itemsize > 4 or (x.dtype.kind in "iu" and x.dtype.itemsize == 4)
            x = x.astype(np.float64 if wide else np.float32, copy=False)
        x1 = self._transform.forward(torch.from_numpy(x))
        if not self._labels:
            return Batch(x1)
        return Batch(x1, {name: torch.from_numpy(values.take(indices)) for name, values in self._labels.items()})


class MemorySplit(Split):
    """Samples x (N, *S), float32, in model units, and conditions (N, ...), each of the type networks are given.

    Raises:
        ValueError: a condition has not a row a sample.
    """

    def __init__(self, x: np.ndarray, cond: Mapping[str, np.ndarray]) -> None:
        self._x = np.ascontiguousarray(x, np.float32)
        self._cond = {name: np.ascontiguousarray(values) for name, values in cond.items()}
        for name, values in self._cond.items():
            if len(values) != len(self._x):
                raise ValueError(f"condition {name!r} has {len(values)} rows for {len(self._x)} samples")

    def __len__(self) -> int:
        return len(self._x)

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        x = torch.from_numpy(self._x.take(indices, axis=0))
        if not self._cond:
            return Batch(x)
        return Batch(x, {name: torch.from_numpy(values.take(indices, axis=0)) for name, values in self._cond.items()})


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
