"""What every data source, its splits and its transform promise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
import torch

from advect.core import registry
from advect.core.random import CounterRng
from advect.core.types import Batch, Category, Length, Quantity, real_steps
from advect.data import (
    Dataset,
    Moons,
    transform_from_config,
)


def formats() -> Iterator[tuple[str, Callable[[Path], Dataset]]]:
    """Every registered format, made by the function of ``data_files`` of its name or by the class's ``part_files``."""
    for name in registry.choices("data-format"):
        cls: Any = registry.get("data-format", name)
        make = getattr(data_files, name.replace("-", "_"), None) or getattr(cls, "part_files", None)
        if make is None and cls.place is None:
            options = getattr(cls, "part_examples", ({},))[0]
            make = lambda folder, cls=cls, options=options: cls(**options)
        yield name, make or (lambda folder, name=name: pytest.fail(f"{name} has no files in data_files.py"))


SOURCES = {
    **dict(formats()),
    "vectors in a file": data_files.vector_file,
    "arrays, a table": data_files.arrays,
    "arrays, pictures": data_files.pictures,
    "pairs": data_files.pairs,
    "a stream of text": data_files.stream,
}


@pytest.fixture(params=SOURCES)
def build(request, tmp_path) -> Callable[[], Dataset]:
    folder = tmp_path / "data"

    def make() -> Dataset:
        folder.mkdir(exist_ok=True)
        return SOURCES[request.param](folder)

    return make


@pytest.fixture
def source(build) -> Dataset:
    return build()


def everything(split) -> Batch:
    return split.fetch(np.arange(len(split)))


def same(a: Batch, b: Batch) -> bool:
    cond_a, cond_b = a.cond or {}, b.cond or {}
    return (
        torch.equal(a.x1, b.x1)
        and cond_a.keys() == cond_b.keys()
        and all(torch.equal(cond_a[k], cond_b[k]) for k in cond_a)
    )


def test_splits_hold_what_the_spec_says(source):
    for split in (source.train, source.held_out):
        batch = everything(split)
        assert batch.x1.shape == (len(split), *source.spec.shape)
        assert batch.x1.dtype == torch.float32 and batch.x1.isfinite().all()
        assert (batch.cond or {}).keys() == source.spec.conditions.keys()
        for name, labels in (batch.cond or {}).items():
            condition = source.spec.conditions[name]
            if isinstance(condition, Quantity):
                assert labels.shape == (len(split), len(condition.names)) and labels.dtype == torch.float32
                continue
            assert labels.shape == (len(split),) and labels.dtype == torch.int64
            low = 1 if isinstance(condition, Length) else 0
            assert ((labels >= low) & (labels < low + len(condition.frequencies))).all()
    assert len(source.train) > 0
    assert (source.modality.layout, len(source.spec.shape)) in {("image", 3), ("vector", 1), ("sequence", 2)}


def test_frequencies_are_those_of_the_training_labels(source):
    labels = everything(source.train).cond or {}
    for name, condition in source.spec.conditions.items():
        if isinstance(condition, Quantity):
            assert abs(labels[name].mean()) < 1e-5 and labels[name].std(correction=0) == pytest.approx(1, abs=1e-4)
            continue
        if isinstance(condition, Category):
            assert len(condition.frequencies) == len(condition.names) == len(set(condition.names))
        codes = labels[name] - int(isinstance(condition, Length))
        shares = torch.bincount(codes, minlength=len(condition.frequencies)) / len(source.train)
        assert condition.frequencies == pytest.approx(shares.tolist(), abs=1e-6)


def test_model_units_are_of_the_size_of_the_noise(source):
    batch = everything(source.train)
    x, real = batch.x1, real_steps(batch.cond, batch.x1)
    if real is not None:
        assert not x[~real].any()
        x = x[real]
    if source.modality.tokens:
        assert ((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all()
    elif source.spec.modality == "image":
        assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.1
    else:
        assert x.mean(0).abs().max() < 0.3 and (x.std(0) - 1).abs().max() < 0.3


def test_the_way_back_to_data_units_and_forth_again(source):
    x = everything(source.train).x1
    torch.testing.assert_close(source.transform.forward(source.transform.inverse(x)), x, rtol=1e-4, atol=1e-4)
    config = json.loads(json.dumps(source.transform.to_config()))
    again = transform_from_config(config, source.transform.tensors())
    torch.testing.assert_close(again.inverse(x), source.transform.inverse(x), rtol=0, atol=0, equal_nan=True)


def test_no_held_out_sample_is_trained_on(source):
    train = {row.numpy().tobytes() for row in everything(source.train).x1}
    assert not [row for row in everything(source.held_out).x1 if row.numpy().tobytes() in train]


def test_fetch_follows_the_indices(source):
    whole = everything(source.train)
    last = len(source.train) - 1
    indices = np.array([last, 0, 3, 0, last])
    batch = source.train.fetch(indices)
    assert torch.equal(batch.x1, whole.x1[indices])
    for name, labels in (batch.cond or {}).items():
        assert torch.equal(labels, whole.cond[name][indices])
    none = source.train.fetch(np.array([], dtype=np.int64))
    assert none.x1.shape == (0, *source.spec.shape)


def test_a_batch_can_be_written_into(source):
    before = everything(source.train)
    batch = everything(source.train)
    batch.x1.zero_()
    for labels in (batch.cond or {}).values():
        labels.fill_(-1)
    assert same(everything(source.train), before)


def test_augmentation_comes_from_the_rng_row_by_row(source):
    indices = np.arange(min(8, len(source.train)))
    n = len(indices)
    first, again = (source.train.fetch(indices, CounterRng(3, 4, n)) for _ in range(2))
    assert same(first, again)
    assert first.x1.shape == (n, *source.spec.shape)
    parts = [
        source.train.fetch(indices[a:b], CounterRng(3, 4, b - a, start=a, total=n)).x1 for a, b in ((0, 3), (3, n))
    ]
    assert torch.equal(torch.cat(parts), first.x1)
    held = np.arange(min(4, len(source.held_out)))
    assert same(source.held_out.fetch(held, CounterRng(3, 4, len(held))), source.held_out.fetch(held))


def test_threads_may_fetch_at_once(source):
    wanted = [np.arange(i, i + 5) % len(source.train) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for indices, batch in zip(wanted, pool.map(source.train.fetch, wanted), strict=True):
            assert same(batch, source.train.fetch(indices))


def test_built_again_it_is_the_same(build):
    first, again = build(), build()
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)
    assert first.fingerprint == again.fingerprint
    assert first.spec == again.spec and first.transform == again.transform
    assert same(everything(first.train), everything(again.train))
    assert same(everything(first.held_out), everything(again.held_out))


def test_fingerprints_tell_data_apart(tmp_path):
    prints = {
        name: make((tmp_path / str(i)).resolve())
        for i, (name, make) in enumerate(SOURCES.items())
        if not (tmp_path / str(i)).mkdir()
    }
    assert len({source.fingerprint for source in prints.values()}) == len(SOURCES)
    assert Moons(n=60, seed=1).fingerprint != Moons(n=60).fingerprint
