"""Copies are left out of data of every format by one rule: the first of each stays, and the rest is as before."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.core.random import CounterRng, Generator
from advect.core.types import LENGTH, Batch
from advect.data import ArrayFile, Arrays, Cells, Dataset, Digits, ImageFolder, Sequences, Split, Table, find_copies
from advect.data.base import Subset
from advect.data.copies import without_copies
from runs import assert_same_end

RNG = np.random.default_rng(0)
AGAIN = {40: 3, 50: 3, 60: 7}
"""Rows that repeat another."""


def repeated(x: np.ndarray) -> np.ndarray:
    for copy, first in AGAIN.items():
        x[copy] = x[first]
    return x


def vectors(folder: Path) -> Dataset:
    return Arrays(repeated(RNG.normal(size=(80, 3)).astype(np.float32)))


def array_file(folder: Path) -> Dataset:
    np.save(folder / "x.npy", repeated(RNG.integers(0, 256, (80, 1, 8, 8)).astype(np.uint8)))
    return ArrayFile(folder / "x.npy")


def table(folder: Path) -> Dataset:
    pd = pytest.importorskip("pandas")
    x = repeated(np.c_[RNG.normal(size=(80, 2)), np.arange(80) % 4])
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": [f"k{int(k)}" for k in x[:, 2]]})
    return Table(frame, conditions=("kind",))


def cells(folder: Path) -> Dataset:
    anndata = pytest.importorskip("anndata")
    return Cells(anndata.AnnData(repeated(RNG.poisson(3.0, (80, 20)).astype(np.float32))))


def sequences(folder: Path) -> Dataset:
    lengths = RNG.integers(5, 9, 80)
    return Sequences([x[:n] for x, n in zip(repeated(RNG.normal(size=(80, 8, 2))), repeated(lengths), strict=True)])


def images(folder: Path) -> Dataset:
    for i, pixels in enumerate(repeated(RNG.integers(0, 256, (80, 8, 8, 3)).astype(np.uint8))):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return ImageFolder(folder, image_size=8)


@pytest.mark.parametrize("make", [vectors, array_file, table, cells, sequences, images])
def test_the_first_of_equal_samples_stays_and_all_else(make: Callable[[Path], Dataset], tmp_path: Path) -> None:
    dataset = make(tmp_path)
    made, told = without_copies(dataset), find_copies(dataset)
    name = (lambda row: f"{row:02}.png") if make is images else (lambda row: f"row {row}")
    pairs = {name(copy): name(first) for copy, first in AGAIN.items()}
    assert dict(zip(told.names, told.first_names, strict=True)) == pairs
    assert made.copies is not None and made.copies.names == told.names and len(told) == 3 and told.looked == 80
    left = set()
    for old, new in ((dataset.train, made.train), (dataset.held_out, made.held_out)):
        names = old.row_names(np.arange(len(old)))
        kept = np.array([i for i, row in enumerate(names) if row not in pairs])
        assert new.row_names(np.arange(len(new))) == [names[i] for i in kept]
        left |= {names[i] for i in kept}
        order = CounterRng(1, 0, len(kept)), CounterRng(1, 0, len(kept))
        a, b = old.fetch(kept, order[0]), new.fetch(np.arange(len(new)), order[1])
        assert torch.equal(a.x1, b.x1)  # augmentation, too, is that of the places in the batch
        assert all(torch.equal(value, (b.cond or {})[key]) for key, value in (a.cond or {}).items())
    assert len(left) == 77
    assert made.fingerprint != dataset.fingerprint and made.fingerprint == without_copies(dataset).fingerprint
    assert without_copies(made).fingerprint == made.fingerprint and len(find_copies(made)) == 0
    cond = made.train.fetch(np.arange(len(made.train))).cond or {}
    for key, condition in made.spec.conditions.items():
        size = len(condition.frequencies)  # type: ignore[union-attr]
        counts = torch.bincount(cond[key] - int(key == LENGTH), minlength=size).double()
        assert torch.allclose(torch.tensor(condition.frequencies).double(), counts / counts.sum())  # type: ignore


def test_a_held_out_copy_of_a_training_sample_is_left_out(tmp_path: Path) -> None:
    train, test = RNG.normal(size=(40, 3)), RNG.normal(size=(20, 3))
    test[5], train[9] = train[2], train[2]
    np.savez(tmp_path / "x.npz", x_train=train, x_test=test)
    made = without_copies(ArrayFile(tmp_path / "x.npz"))
    assert (len(made.train), len(made.held_out)) == (39, 19)
    assert made.copies is not None and made.copies.words().endswith("(1 to train on, 1 held out)")
    rows = list(csv.DictReader(made.copies.to_csv().splitlines()))
    assert [row["copy"] for row in rows] == ["row 9", "row 45"] and {row["repeats"] for row in rows} == {"row 2"}
    assert rows[1]["copy is"] == "held out" and rows[1]["which is"] == "training"


def test_equal_values_with_other_conditions_and_coincidences_stay() -> None:
    x = repeated(RNG.normal(size=(80, 3)))
    told = find_copies(Arrays(x, conditions={"y": np.arange(80)}, held_out=0.0))
    assert len(told) == 0 and told.equal == 3 and sorted(told.otherwise) == ["row 40", "row 50", "row 60"]
    few = Arrays(RNG.integers(0, 3, (300, 2)).astype(np.float64))
    told = find_copies(few)
    assert len(told) == 0 and told.equal >= 291
    assert without_copies(few).fingerprint == few.fingerprint
    assert len(find_copies(Digits())) == 0


def test_a_run_without_copies_resumes_to_the_bit_and_is_judged_on_the_same_rows(
    advect: Callable[..., None], tmp_path: Path
) -> None:
    np.save("x.npy", repeated(RNG.normal(size=(80, 3))))
    words = "train --data x.npy --width 16 --depth 1 --batch-size 8 --num-epochs 4 --sample-every 0 --log-every 1"
    advect(f"{words} --drop-copies --run-dir whole --save-every 10 --keep-last 0")
    rows = csv.DictReader(Path("whole/copies.csv").read_text().splitlines())
    assert {row["copy"] for row in rows} == {
        "row 40",
        "row 50",
        "row 60",
    }
    last = max(int(p.name[5:]) for p in Path("whole/checkpoints").glob("step-*"))
    advect("train --resume-from whole/checkpoints/step-00000010 --run-dir resumed")
    assert_same_end(Path("whole"), Path("resumed"), last, since=10)
    assert Path("resumed/copies.csv").read_text() == Path("whole/copies.csv").read_text()
    facts = [json.loads(Path(run, "environment.json").read_text()) for run in ("whole", "resumed")]
    own = without_copies(ArrayFile("x.npy")).fingerprint
    assert {f["data_fingerprint"] for f in facts} == {own} != {ArrayFile("x.npy").fingerprint}
    advect("eval whole --num-samples 20 --metrics energy")
    (file,) = Path("whole/evaluation").glob("eval-*.json")
    assert own in file.read_text()


class Shards(Split):
    """Samples in runs of 3, 0, 4 and 2, of two shapes; rows tell their number and the bucket asked for."""

    shards, buckets, shapes = (3, 0, 4, 2), np.arange(9) % 2, ((1,), (2,))

    def __len__(self) -> int:
        return 9

    def fetch(self, indices: np.ndarray, rng: Generator = None, bucket: int | None = None) -> Batch:
        return Batch(torch.tensor([[float(i), float(bucket or 0)] for i in indices]))


def test_a_subset_keeps_shards_and_buckets() -> None:
    some = Subset(Subset(Shards(), np.array([0, 2, 3, 5, 6, 8])), np.array([1, 2, 4, 5]))
    assert len(some) == 4 and some.shards == [1, 0, 2, 1] and some.buckets is not None
    assert some.buckets.tolist() == [0, 1, 0, 0] and some.shapes == Shards.shapes
    assert some.fetch(np.array([3, 0]), None, 1).x1.tolist() == [[8, 1], [2, 1]]
    split, places = some.origin(np.array([1, 2]))
    assert isinstance(split, Shards) and places.tolist() == [3, 6] and some.row_names(np.array([3])) == ["row 8"]


def test_an_unreadable_file_is_no_copy_of_the_one_that_stands_in(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "04a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    dataset = ImageFolder(tmp_path, image_size=8)
    told = find_copies(dataset)
    assert told.names == [f"{row}.png" for row in AGAIN] and dataset.unreadable


def test_an_estimator_leaves_them_out() -> None:
    from advect import FlowModel

    x = repeated(RNG.normal(size=(80, 3)))
    model = FlowModel(steps=4, hidden=8, early_stopping=False, options={"drop_copies": True}, random_state=0).fit(x)
    assert model.copies_ is not None and model.copies_.tolist() == sorted(AGAIN)
    alone = FlowModel(steps=4, hidden=8, early_stopping=False, random_state=0).fit(np.delete(x, sorted(AGAIN), 0))
    assert alone.copies_ is None and alone.loss_curve_ == pytest.approx(model.loss_curve_, rel=0.2)
    with pytest.raises(UserError, match="drop_copies must be True or False"):
        FlowModel(options={"drop_copies": 1}).fit(x)
