from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.data import Arrays, ArraySplit, PixelScale, Standardize

RNG = np.random.default_rng(0)


def everything(source: Arrays) -> torch.Tensor:
    """All samples in data units, the training split's first."""
    splits = [split.fetch(np.arange(len(split))).x1 for split in (source.train, source.held_out)]
    return source.transform.inverse(torch.cat(splits))


@given(n=st.integers(1, 60), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
def test_the_splits_share_out_the_rows(n, share, seed):
    source = Arrays(np.arange(n)[:, None], held_out=share, seed=seed)
    assert sorted(everything(source).flatten().round().int().tolist()) == list(range(n))
    assert len(source.train) >= 1
    if n >= 2:
        assert bool(len(source.held_out)) == (share > 0)


def test_the_seed_decides_the_split():
    x = np.arange(100.0)[:, None]
    assert torch.equal(everything(Arrays(x)), everything(Arrays(x)))
    assert not torch.equal(everything(Arrays(x)), everything(Arrays(x, seed=1)))
    assert len(Arrays(x, held_out=0.25).held_out) == 25


def test_vectors_are_standardised_by_the_training_rows():
    x = RNG.normal(50, 3, (200, 4)).astype(np.float32)
    source = Arrays(x, held_out=0.5)
    train = source.train.fetch(np.arange(100)).x1
    assert (source.spec.shape, source.spec.modality) == ((4,), "vector")
    assert train.dtype == torch.float32
    assert torch.allclose(train.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(train.std(0, unbiased=False), torch.ones(4), atol=1e-4)
    assert source.held_out.fetch(np.arange(100)).x1.mean().abs() > 1e-3
    assert isinstance(source.transform, Standardize)


def test_labels_stay_with_their_rows():
    labels = RNG.integers(0, 3, 40)
    x = np.stack([labels * 10, np.arange(40)], 1)
    source = Arrays(x, conditions={"kind": labels, "sex": labels == 1}, names={"kind": ["a", "b", "c", "d"]})
    for split in (source.train, source.held_out):
        batch = split.fetch(np.arange(len(split)))
        assert torch.equal(source.transform.inverse(batch.x1)[:, 0].round(), batch.cond["kind"] * 10.0)
        assert torch.equal(batch.cond["sex"], (batch.cond["kind"] == 1).long())
    kind, sex = source.spec.conditions["kind"], source.spec.conditions["sex"]
    assert (kind.names, sex.names) == (("a", "b", "c", "d"), ("0", "1"))
    assert kind.frequencies[3] == 0
    assert sum(kind.frequencies) == pytest.approx(1)


def test_eight_bit_images_need_no_range_and_equal_the_same_images_as_floats():
    x = RNG.integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
    bits, floats = Arrays(x), Arrays(x.astype(np.int32), value_range=(0, 255))
    assert (bits.spec.shape, bits.spec.modality) == ((3, 4, 5), "image")
    assert bits.transform == floats.transform == PixelScale(0, 255, integer=True)
    rows = np.array([3, 1])
    assert torch.equal(bits.train.fetch(rows).x1, floats.train.fetch(rows).x1)
    assert sorted(everything(bits).flatten(1).tolist()) == sorted(x.reshape(20, -1).astype(float).tolist())


def test_float_images_are_scaled_by_the_range_and_not_rounded():
    source = Arrays(np.full((4, 1, 2, 2), 0.25), value_range=(0, 1))
    assert torch.equal(source.train.fetch(np.arange(2)).x1, torch.full((2, 1, 2, 2), -0.5))
    assert source.transform == PixelScale(0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16, torch.bool])
def test_tensors_of_any_real_type(dtype):
    x = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]]).to(dtype).requires_grad_(dtype.is_floating_point)
    assert sorted(everything(Arrays(x)).round().tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_the_fingerprint_follows_the_content():
    x = RNG.normal(size=(30, 2))
    labels = np.arange(30) % 2
    changed = x.copy()
    changed[7, 1] += 1e-12
    prints = {
        Arrays(x).fingerprint,
        Arrays(changed).fingerprint,
        Arrays(x, seed=1).fingerprint,
        Arrays(x, conditions={"a": labels}).fingerprint,
        Arrays(x, conditions={"b": labels}).fingerprint,
        Arrays(x, conditions={"a": 1 - labels}).fingerprint,
        Arrays(x, conditions={"a": labels}, names={"a": ["x", "y"]}).fingerprint,
    }
    assert len(prints) == 7
    assert Arrays(x.copy(), name="other").fingerprint == Arrays(np.asfortranarray(x)).fingerprint
    assert Arrays(x.astype(">f8")).fingerprint == Arrays(x).fingerprint


def test_changing_the_array_afterwards_changes_nothing():
    x = np.arange(20, dtype=np.uint8).reshape(5, 1, 2, 2)
    source = Arrays(x)
    before = everything(source)
    x[:] = 0
    assert torch.equal(everything(source), before)


def with_nan(shape, *places):
    x = np.ones(shape)
    for place, value in places:
        x[place] = value
    return x


GOOD = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("x", "arguments", "words"),
    [
        (
            with_nan((9, 3), ((4, 2), np.nan), ((4, 1), np.inf), ((8, 0), np.nan)),
            {},
            "3 NaN or infinite values in 2 of 9 rows, the first (inf) in row 4, column 1",
        ),
        (with_nan((2, 3, 4, 5), ((1, 2, 3, 4), np.nan)), {}, "row 1, channel 2, pixel (3, 4)"),
        (np.zeros((0, 3)), {}, "x is empty, its shape is (0, 3)"),
        (np.zeros((3, 0)), {}, "x is empty"),
        (np.zeros(3), {}, "got shape (3,); for one feature give x.reshape(-1, 1)"),
        (np.zeros((3, 4, 5)), {}, "got shape (3, 4, 5)"),
        (np.array([["a", 1], ["b", 2]], dtype=object), {}, "got dtype object"),
        (np.zeros((2, 2), complex), {}, "got dtype complex128"),
        ([[1, 2], [3]], {}, "x is not an array"),
        (GOOD, {"conditions": {"c": [0, 1]}}, "conditions['c'] must have shape (3,), a label a row of x, got (2,)"),
        (GOOD, {"conditions": {"c": [[0], [1], [2]]}}, "got (3, 1)"),
        (GOOD, {"conditions": {"c": [0, 1, -1]}}, "conditions['c'] must be >= 0, got -1 in row 2"),
        (GOOD, {"conditions": {"c": ["a", "b", "a"]}}, "np.unique(labels, return_inverse=True)"),
        (GOOD, {"conditions": {"c": [0.5, 1.0, 0.0]}}, "whole numbers, got dtype float64"),
        (GOOD, {"conditions": {"c": [0, 1, 2]}, "names": {"c": ["x", "y"]}}, "has label 2 but names['c'] only 2"),
        (GOOD, {"names": {"c": ["x", "y"]}}, "names has 'c', which conditions has not"),
        (GOOD, {"held_out": 1.0}, "held_out must be at least 0 and below 1, got 1.0"),
        (GOOD, {"held_out": float("nan")}, "got nan"),
        (GOOD, {"value_range": (0, 5)}, "value_range is for images"),
        (np.ones((2, 1, 2, 2)), {}, "value_range must be given for images of float64"),
        (np.full((2, 1, 2, 2), 3.0), {"value_range": (0, 1)}, "x lies in [3.0, 3.0], outside value_range (0, 1)"),
    ],
)
def test_bad_input(x, arguments, words):
    with pytest.raises(UserError) as error:
        Arrays(x, **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_gives_the_same_rows_wherever_and_however_they_lie(tmp_path) -> None:
    x = np.arange(240, dtype=np.uint8).reshape(10, 2, 3, 4)
    np.save(tmp_path / "x.npy", x)
    same = [x, np.load(tmp_path / "x.npy", mmap_mode="r"), np.asfortranarray(x), x.astype(">u2"), x.astype(np.int64)]
    rows, labels = np.array([7, 2, 5]), {"label": np.arange(10, dtype=np.int8), "dose": np.ones((10, 2), np.float32)}
    for array in same:
        split = ArraySplit(array, labels, PixelScale(0, 255, integer=True), rows=rows)
        batch, plain = split.fetch(np.array([2, 0])), ArraySplit(x / np.float32(127.5) - 1).fetch(np.array([5, 7]))
        torch.testing.assert_close(batch.x1, plain.x1)
        cond = batch.cond or {}
        assert cond["label"].tolist() == [5, 7] and cond["label"].dtype == torch.int64 and cond["dose"].shape == (2, 2)
    with pytest.raises(ValueError, match="has 9 rows for 10 samples"):
        ArraySplit(x, {"label": np.zeros(9)})
