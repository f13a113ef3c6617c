"""Held-out rows that are training rows."""

from __future__ import annotations

import numpy as np

from advect.data import repeats
from advect.data.base import ArraySplit
from advect.data.repeats import shared_rows


def split(x: np.ndarray) -> ArraySplit:
    return ArraySplit(x.astype(np.float32))


def test_equal_rows_are_counted_wherever_they_lie() -> None:
    x = np.random.default_rng(0).normal(size=(700, 3))
    train, other = x[:500], x[500:]
    assert shared_rows(split(train), split(other)) == 0
    assert shared_rows(split(train), split(np.concatenate([other, train[[7, 499, 7]]]))) == 3
    train[0], other[0], other[1] = (0, 1, 2), (-0.0, 1, 2), (0, 1 + 1e-6, 2)
    assert shared_rows(split(train), split(other)) == 1


def test_rows_of_few_values_are_equal_and_no_copies() -> None:
    x = np.random.default_rng(0).integers(0, 2, (400, 3))
    assert shared_rows(split(x[:300]), split(x[300:])) == 0


def test_of_a_large_training_set_a_share_is_known(monkeypatch) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 2))
    monkeypatch.setattr(repeats, "LOOKED_AT", 100)
    assert shared_rows(split(x), split(x[:100])) in range(8, 13)
