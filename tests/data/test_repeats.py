from __future__ import annotations

import numpy as np
import pytest

from advect.data import splits
from advect.data.array_files import ArrayFile
from advect.data.repeats import copied, split_rows
from advect.data.splits import equal_rows, row_hashes

RNG = np.random.default_rng(0)


def rare(n: int = 400) -> np.ndarray:
    return np.stack([RNG.random(n) < 0.04, RNG.random(n) < 0.07, RNG.random(n) < 0.03], 1).astype(np.float64)


def zero_inflated(n: int, d: int) -> np.ndarray:
    x = np.zeros((n, d))
    some = RNG.random(n) < 0.3
    x[some] = RNG.normal(size=(int(some.sum()), d))
    return x


@pytest.mark.parametrize("x", [rare(), zero_inflated(600, 6), zero_inflated(600, 200), RNG.integers(0, 5, (2000, 4))])
def test_common_rows_are_no_copies(x):
    x = np.asarray(x, np.float64)
    assert not copied(x, equal_rows(x)).any()


@pytest.mark.parametrize("row", [RNG.normal(size=(200, 2)), RNG.integers(0, 17, (500, 64)), RNG.normal(size=(50, 1))])
def test_copied_rows_share_a_side(row):
    x = np.concatenate([row, row[:40], row[:20]]).astype(np.float64)
    groups = equal_rows(x)
    assert copied(x, groups).sum() == 100
    train, rest = split_rows(x, 0.2, seed=0)
    assert not set(groups[train]) & set(groups[rest])
    assert sorted([*train, *rest]) == list(range(len(x)))


@pytest.mark.parametrize("n", [60, 200, 1000, 8000])
@pytest.mark.parametrize("rest", [None, 2, 8])
def test_rounded_values_that_meet_are_no_copies(n, rest):
    x = RNG.normal(size=(n, 1)).round(3)
    if rest:
        x = np.concatenate([x, RNG.integers(0, rest, (n, 1))], 1)
    assert not copied(x, equal_rows(x)).any()


def test_rare_values_are_on_both_sides_in_their_shares():
    x = rare()
    train, rest = split_rows(x, 0.1, seed=0)
    assert len(rest) == 40
    for column in range(3):
        total = x[:, column].sum()
        assert abs(x[rest, column].sum() - total / 10) <= 2
        assert x[train, column].sum() > 0 and x[rest, column].sum() > 0


def test_zeros_of_an_array_file_are_trained_on(tmp_path):
    x = zero_inflated(600, 6)
    np.save(tmp_path / "x.npy", x)
    dataset = ArrayFile(tmp_path / "x.npy")
    assert 0.07 < len(dataset.held_out) / 600 < 0.13
    back = dataset.transform.inverse(dataset.train.fetch(np.arange(len(dataset.train))).x1).numpy()
    share = (np.abs(back) < 1e-6).all(1).mean()
    assert share == pytest.approx((x == 0).all(1).mean(), abs=0.03)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, bool])
def test_hashes_tell_rows_apart_and_equal_rows_are_numbered_as_they_come(dtype):
    x = np.random.default_rng(0).integers(0, 3, (500, 4)).astype(dtype)
    if x.dtype.kind == "f":
        x[x == 2] = np.nan
        x[::2] *= -1  # -0.0 is 0.0
    numbers: dict[tuple, int] = {}
    keys = [tuple(None if v != v else v + 0 for v in row.tolist()) for row in x]
    assert equal_rows(x).tolist() == [numbers.setdefault(key, len(numbers)) for key in keys]
    assert len(np.unique(row_hashes(x))) == len(numbers)


def test_rows_of_one_hash_are_compared_by_value(monkeypatch):
    monkeypatch.setattr(splits, "row_hashes", lambda x: np.zeros(len(x), np.uint64))
    assert equal_rows(np.array([[3.0], [1.0], [3.0], [2.0]])).tolist() == [0, 1, 0, 2]
