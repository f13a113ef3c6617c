"""Whether held-out rows are training rows in truth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from advect.data import Split

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
