"""Conditions, shapes and errors: the small parts of the ground."""

from __future__ import annotations

import itertools

import pytest
import torch

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.random import CounterRng
from advect.core.types import (
    LENGTH,
    NULL,
    Batch,
    check_pair,
    drop_conditions,
    expand_right,
    is_null,
    null_conditions,
)


def test_one_condition_is_dropped_in_the_asked_share():
    n = 20_000
    cond = {"label": torch.arange(n), LENGTH: torch.arange(n) + 7}
    dropped = drop_conditions(cond, 0.3, CounterRng(0, 0, n))
    assert dropped is not None
    gone = dropped["label"] == NULL
    assert torch.equal(dropped[LENGTH], cond[LENGTH])  # never dropped, and no second condition
    assert torch.equal(dropped["label"][~gone], cond["label"][~gone])
    assert abs(gone.double().mean() - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    assert dropped["label"].dtype == torch.int64
    assert torch.equal(cond["label"], torch.arange(n))


def test_several_conditions_are_dropped_together_and_each_on_its_own():
    n, p = 50_000, 0.2
    cond = {"a": torch.arange(n), "b": torch.arange(n), "c": torch.randn(n, 2)}
    dropped = drop_conditions(cond, p, CounterRng(0, 0, n))
    missing = torch.stack([is_null(value) for value in dropped.values()], 1)
    for subset in itertools.product([False, True], repeat=3):
        m = sum(subset)
        share = (1 - p) * p**m * (1 - p) ** (3 - m) + (p if m == 3 else 0)
        found = (missing == torch.tensor(subset)).all(1).double().mean()
        assert abs(found - share) < 4 * (share * (1 - share) / n) ** 0.5
    assert not dropped["c"][missing[:, 2]].isfinite().any()


def test_dropping_all_none_and_nothing():
    cond = {"label": torch.arange(50)}
    assert (drop_conditions(cond, 1.0, CounterRng(0, 0, 50))["label"] == NULL).all()
    assert torch.equal(drop_conditions(cond, 0.0, CounterRng(0, 0, 50))["label"], cond["label"])
    assert drop_conditions(None, 0.5, CounterRng(0, 0, 50)) is None
    assert drop_conditions({}, 0.5, CounterRng(0, 0, 50)) == {}


def test_which_samples_are_dropped_does_not_depend_on_the_split_over_processes():
    cond = {"c": torch.arange(30), "d": torch.arange(30)}
    whole = drop_conditions(cond, 0.5, CounterRng(1, 2, 30))
    tail = drop_conditions({k: v[11:] for k, v in cond.items()}, 0.5, CounterRng(1, 2, 19, start=11, total=30))
    assert all(torch.equal(whole[k][11:], tail[k]) for k in cond)


def test_null_conditions_are_all_null_and_new():
    cond = {"a": torch.arange(3), "b": torch.zeros(3, 2, dtype=torch.int64)}
    null = null_conditions(cond)
    assert all((null[k] == NULL).all() and null[k].shape == cond[k].shape for k in cond)
    assert cond["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 5, 5)])
def test_expand_right_aligns_the_batch(shape):
    t, x = torch.arange(4.0), torch.ones(shape)
    product = expand_right(t, x) * x
    assert product.shape == x.shape
    assert torch.equal(product.flatten(1).amax(1) if x.ndim > 1 else product, t)


@pytest.mark.parametrize(
    ("x0", "x1", "t", "message"),
    [
        ((4, 2), (4, 3), None, r"same shape, got \(4, 2\) and \(4, 3\)"),
        ((4, 2), (5, 2), None, r"same shape"),
        ((4, 2), (4, 2), (3,), r"t must have shape \(4,\), one time a sample, got \(3,\)"),
        ((4, 2), (4, 2), (4, 1), r"got \(4, 1\)"),
        ((4, 2), (4, 2), (), r"got \(\)"),
    ],
)
def test_check_pair_says_what_does_not_match(x0, x1, t, message):
    with pytest.raises(UserError, match=message):
        check_pair(torch.zeros(x0), torch.zeros(x1), None if t is None else torch.zeros(t))


def test_check_pair_sees_two_devices():
    with pytest.raises(UserError, match=r"one device, got cpu and meta; move one with \.to\(\)"):
        check_pair(torch.zeros(4, 2), torch.zeros(4, 2, device="meta"))


def test_did_you_mean_takes_the_nearest_or_lists_all():
    assert did_you_mean("midpiont", ["euler", "midpoint"]) == "; did you mean 'midpoint'?"
    assert did_you_mean("xyz", ["euler", "midpoint"]) == "; choose from euler, midpoint"
    assert did_you_mean("eulr", iter(["euler", "midpoint"])) == "; did you mean 'euler'?"


def test_a_missing_library_names_its_extra():
    assert optional_import("json", "cells").loads("1") == 1
    with pytest.raises(UserError, match=r"not_there_at_all is not installed; run: pip install 'advect\[cells\]'"):
        optional_import("not_there_at_all", "cells")


def test_a_batch_moves_with_its_conditions_and_stays_where_it_is():
    batch = Batch(torch.zeros(3, 2), {"label": torch.arange(3)})
    assert len(batch) == 3
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.x1.device.type == moved.cond["label"].device.type == "meta"
    assert Batch(torch.zeros(3, 2)).to(torch.device("meta")).cond is None
