"""Whether samples are copies of training data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advect.data import Split
from advect.metrics import nearest_neighbours

LOOKED_AT = 100_000
"""Training rows at most, evenly spread, that held-out ones are compared with."""

_BATCH = 256


def shared_rows(train: Split, held_out: Split) -> int:
    """How many held-out rows equal one of the training rows to the last bit, in model units.

    Of a larger training set only LOOKED_AT rows are known, so that as large a share of the equal ones is found.
    """
    known = set(_digests(train))
    return sum(digest in known for digest in _digests(held_out))


def _digests(split: Split) -> Iterator[bytes]:
    places = np.linspace(0, len(split) - 1, min(len(split), LOOKED_AT)).round().astype(np.int64)
    for i in range(0, len(places), _BATCH):
        x = split.fetch(places[i : i + _BATCH]).x1.flatten(1).numpy() + 0.0  # -0.0 equals 0.0
        yield from (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x)


PERCENTILE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """Euclidean distances, in data units, to the nearest training row.

    Attributes:
        sample_distances: of each sample (n,).
        held_out_distances: of each held-out row (M,), which were never trained on.
        threshold: the 1st percentile of the held-out distances.
        share_closer: the share of samples below it; about 0.01 for a flow that has not memorised.
        samples, neighbours: some samples (s, *S), from the closest to the farthest at even ranks, with their
            nearest training rows (s, k, *S), nearest first.
        distances, indices: of these neighbours (s, k).
    """

    sample_distances: Tensor
    held_out_distances: Tensor
    threshold: float
    share_closer: float
    samples: Tensor
    neighbours: Tensor
    distances: Tensor
    indices: Tensor


def measure_memorisation(
    samples: Tensor, train: Tensor, held_out: Tensor, *, shown: int = 12, k: int = 3
) -> Memorisation:
    """Compare how near samples (n, *S) and held_out (M, *S) come to train (N, *S)."""
    near = nearest_neighbours(samples, train, k=min(k, len(train)))
    real = nearest_neighbours(held_out, train).distances[:, 0]
    own = near.distances[:, 0]
    threshold = float(torch.quantile(real, PERCENTILE))
    places = own.argsort()[torch.linspace(0, len(own) - 1, min(shown, len(own))).round().long()]
    return Memorisation(
        sample_distances=own,
        held_out_distances=real,
        threshold=threshold,
        share_closer=float((own < threshold).double().mean()),
        samples=samples[places],
        neighbours=train[near.indices[places]],
        distances=near.distances[places],
        indices=near.indices[places],
    )
