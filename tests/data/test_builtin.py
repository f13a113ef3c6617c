"""Digits and moons, which need no file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from advect.core.errors import UserError
from advect.data import Dataset, Digits, Moons


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def everything(split):
    return split.fetch(np.arange(len(split)))


def test_the_halves_of_digits_are_scikit_learns_digits_with_their_labels(digits):
    pixels, target = load_digits(return_X_y=True)
    expected = sorted((*row, label) for row, label in zip(pixels.tolist(), target.tolist(), strict=True))
    found = []
    for split in (digits.train, digits.held_out):
        batch = everything(split)
        data = digits.transform.inverse(batch.x1).flatten(1).tolist()
        found += [(*row, label) for row, label in zip(data, batch.cond["label"].tolist(), strict=True)]
    assert sorted(found) == expected
    assert (len(digits.train), len(digits.held_out)) == (899, 898)


def test_each_class_of_digits_is_halved(digits):
    halves = [torch.bincount(everything(split).cond["label"]) for split in (digits.train, digits.held_out)]
    assert (halves[0] - halves[1]).abs().max() <= 1
    category = digits.spec.conditions["label"]
    assert category.names == tuple("0123456789")
    np.testing.assert_allclose(category.frequencies, halves[0] / 899, rtol=1e-6)
    assert sum(category.frequencies) == pytest.approx(1)


def test_digits_are_images_in_model_units(digits):
    assert isinstance(digits, Dataset)
    assert (digits.name, digits.spec.shape, digits.spec.modality) == ("digits", (1, 8, 8), "image")
    x1 = everything(digits.train).x1
    assert (x1.dtype, x1.min(), x1.max()) == (torch.float32, -1, 1)


def test_fetch_keeps_the_order_and_repeats(digits):
    batch = digits.train.fetch(np.array([5, 0, 5]))
    rows = [digits.train.fetch(np.array([i])) for i in (5, 0, 5)]
    assert torch.equal(batch.x1, torch.cat([row.x1 for row in rows]))
    assert torch.equal(batch.cond["label"], torch.cat([row.cond["label"] for row in rows]))
    assert batch.cond["label"].dtype == torch.int64


def test_a_fetched_batch_is_the_callers_own(digits):
    before = digits.train.fetch(np.arange(4)).x1
    digits.train.fetch(np.arange(4)).x1.zero_()
    assert torch.equal(digits.train.fetch(np.arange(4)).x1, before)


def test_fingerprints_are_the_same_in_another_process_which_imports_scikit_learn_late(digits):
    code = (
        "import sys; from advect.data import Digits, Moons; late = 'sklearn' not in sys.modules;"
        "print(late, Digits().fingerprint, Moons(n=50).fingerprint)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out == ["True", digits.fingerprint, Moons(n=50).fingerprint]


def test_moons_lie_on_their_half_circles():
    moons = Moons(n=400, noise=0)
    x, y = moons.transform.inverse(everything(moons.train).x1).T
    upper, lower = (x**2 + y**2 - 1).abs(), ((x - 1) ** 2 + (y - 0.5) ** 2 - 1).abs()
    assert torch.minimum(upper, lower).max() < 1e-5
    assert (moons.spec.shape, moons.spec.modality, moons.spec.conditions) == ((2,), "vector", {})


def test_moons_splits_are_independent_draws_that_the_seed_decides():
    first, again, other = Moons(n=300), Moons(n=300), Moons(n=300, seed=1)
    train, held_out = everything(first.train), everything(first.held_out)
    assert train.cond is None
    assert torch.equal(train.x1, everything(again.train).x1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not set(map(tuple, train.x1.tolist())) & set(map(tuple, held_out.x1.tolist()))
    assert train.x1.std(0, unbiased=False).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1}, "n must be at least 2"),
        ({"noise": -0.1}, "noise must be at least 0 and at most 1,000,000, got -0.1"),
        ({"noise": float("nan")}, "got nan"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(UserError) as error:
        Moons(**arguments)
    assert words in str(error.value)
