"""What every data source, its splits and its transform promise."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from implementations import implementations
from PIL import Image

from advect.core import registry
from advect.core.random import CounterRng
from advect.core.types import Batch, Category, Length, Quantity, real_steps
from advect.data import (
    ArrayFile,
    Arrays,
    CelebA,
    Cells,
    Chain,
    Cifar,
    Components,
    Dataset,
    Digits,
    Expression,
    FashionMnist,
    HubImages,
    Identity,
    ImageFolder,
    Mnist,
    Moons,
    Packed,
    ParquetImages,
    PixelScale,
    Sequences,
    SequenceScale,
    Shards,
    Standardize,
    Table,
    TableTransform,
    Transform,
    pack,
    transform_from_config,
)
from advect.data.pairs import PairedDataset, Pairs, write_pairs
from advect.data.tables.columns import Categories, Number
from advect.data.tables.scaling import StandardScaling

# --- Transforms ---

TURN = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
SCALE = StandardScaling(mean=3.0, std=2.0)
COLUMNS = [
    Number(name="size", dtype="float64", scaling=SCALE, low=-9.0, high=9.0),
    Categories(name="kind", dtype="object", names=["a", "b"]),
]
TRANSFORMS = [
    (Identity(), torch.linspace(-50, 50, 60).reshape(10, 6)),
    (PixelScale(0, 255, integer=True), torch.arange(256).reshape(4, 1, 8, 8)),
    (PixelScale(-0.25, 1.5), torch.linspace(-0.25, 1.5, 24).reshape(2, 3, 2, 2)),
    (Standardize([0.1, -3, 1e5], [1e-3, 7, 250.0]), torch.tensor([[0.1, -3, 1e5], [0.0, 4, 1e5 - 700]])),
    (Expression(space="counts", target_sum=100, library=70), torch.arange(12).reshape(3, 4)),
    (Components(TURN, torch.tensor([1.0, -2])), torch.tensor([[0.5, 3], [-1, 7]])),
    (Chain([Components(TURN, torch.zeros(2)), Standardize([1.0, 2], [3.0, 4])]), torch.tensor([[0.5, 3], [-1, 7]])),
    (SequenceScale([1.0, -20], [0.5, 30], ragged=True), torch.linspace(-90, 90, 24).reshape(3, 4, 2)),
    (TableTransform(COLUMNS), torch.tensor([[-8.5, 1], [3, 0], [0.25, 1]])),
]


def test_no_transform_is_left_out():
    assert {type(transform) for transform, _ in TRANSFORMS} == implementations(Transform, "advect.data")


@pytest.mark.parametrize(("transform", "x"), TRANSFORMS, ids=[repr(t)[:24] for t, _ in TRANSFORMS])
class TestTransform:
    def test_there_and_back(self, transform, x):
        model = transform.forward(x)
        assert model.dtype == torch.float32 and len(model) == len(x)
        back = transform.inverse(model)
        # float32 has not the digits of dates, large whole numbers and values far from zero.
        wide = isinstance(transform, TableTransform) or getattr(transform, "wide", False)
        assert back.dtype == (torch.float64 if wide else torch.float32) and back.shape == x.shape
        torch.testing.assert_close(back.float(), x.float(), rtol=1e-5, atol=1e-4)

    def test_arguments_stay_as_they_are(self, transform, x):
        x, before = x.float(), x.float().clone()
        transform.forward(x)
        transform.inverse(x)
        assert torch.equal(x, before)

    def test_its_config_is_json_and_builds_its_equal(self, transform, x):
        again = transform_from_config(json.loads(json.dumps(transform.to_config())), transform.tensors())
        assert again == transform and type(again) is type(transform)
        assert torch.equal(again.forward(x), transform.forward(x))


# --- Sources ---


def _idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fashion_mnist(folder: Path) -> FashionMnist:
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("t10k", 5)):
        _idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        _idx(folder / f"{part}-labels-idx1-ubyte", rng.integers(0, 10, n))
    return FashionMnist(folder)


def mnist(folder: Path) -> Mnist:
    rng = np.random.default_rng(1)
    for part, n in (("train", 12), ("test", 5)):
        _idx(folder / f"emnist-letters-{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 6, 9)))
        _idx(folder / f"emnist-letters-{part}-labels-idx1-ubyte", rng.integers(0, 4, n))
    return Mnist(folder)


def array_file(folder: Path) -> ArrayFile:
    np.save(folder / "images.npy", np.random.default_rng(2).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8))
    return ArrayFile(folder / "images.npy", held_out=0.3, horizontal_flip=True)


def vector_file(folder: Path) -> ArrayFile:
    rng = np.random.default_rng(3)
    np.savez(folder / "vectors.npz", x=rng.normal(3, [1, 20], (60, 2)), y=np.arange(60) % 3)
    return ArrayFile(folder / "vectors.npz", held_out=0.2)


def image_folder(folder: Path) -> ImageFolder:
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return ImageFolder(folder, image_size=8, held_out=0.25)


def packed(folder: Path) -> Packed:
    rng, originals = np.random.default_rng(5), folder / "originals"
    originals.mkdir(exist_ok=True)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)).save(originals / f"{i}.png")
    return Packed(pack(originals, folder / "packed", image_size=8, progress=False), held_out=0.25)


def shards(folder: Path) -> Shards:
    rng = np.random.default_rng(6)
    for s in range(0 if any(folder.iterdir()) else 3):
        with tarfile.open(folder / f"{s}.tar", "w") as archive:
            for i in range(8):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)).save(image, "PNG")
                for name, content in ((f"{i}.png", image.getvalue()), (f"{i}.cls", b"%d" % (i % 2))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return Shards(folder, image_size=8, held_out=0.25)


def parquet(folder: Path) -> ParquetImages:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng, rows = np.random.default_rng(7), []
    for _ in range(24):
        image = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)).save(image, "PNG")
        rows.append(image.getvalue())
    pq.write_table(pa.table({"image": rows, "kind": [i % 3 for i in range(24)]}), folder / "0.parquet", 5)
    return ParquetImages(folder, label_column="kind", image_size=8, held_out=0.25)


def celeba(folder: Path) -> CelebA:
    rng, names = np.random.default_rng(0), [f"{i:06}.jpg" for i in range(1, 21)]
    (folder / "img_align_celeba").mkdir(exist_ok=True)
    for name in names:
        pixels = rng.integers(0, 256, (14, 12, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    rows = "".join(f"{name} {1 - i // 2 % 2 * 2} -1\n" for i, name in enumerate(names))
    (folder / "list_attr_celeba.txt").write_text(f"20\nSmiling Male\n{rows}")
    return CelebA(folder, image_size=8, attributes=("Male", "Smiling"))


def cifar(folder: Path) -> Cifar:
    rng = np.random.default_rng(0)
    for name, n in (*((f"data_batch_{i}", 2) for i in range(1, 6)), ("test_batch", 4)):
        table = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        table[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(table.tobytes())
    return Cifar(folder)


def hub_images(folder: Path) -> HubImages:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rng = np.random.default_rng(5)
    columns = {"image": [Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)) for _ in range(12)]}
    if not (folder / "set").exists():
        datasets.Dataset.from_dict({**columns, "kind": ["a", "b", "c"] * 4}).save_to_disk(str(folder / "set"))
    return HubImages(folder / "set", image_size=8, conditions=["kind"], held_out=0.25)


def table(folder: Path) -> Arrays:
    rng = np.random.default_rng(0)
    return Arrays(rng.normal(5, [0.1, 30, 1], (40, 3)), conditions={"cell.line": np.arange(40) % 3}, held_out=0.2)


def pictures(folder: Path) -> Arrays:
    return Arrays(np.random.default_rng(0).integers(0, 256, (9, 3, 4, 5), dtype=np.uint8), held_out=0)


def cells(folder: Path) -> Cells:
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    x = np.random.default_rng(0).poisson(5, (90, 6)).astype(np.float32)
    obs = pd.DataFrame({"cell.type": np.array(["a", "b", "c"])[np.arange(90) % 3]}, index=[str(i) for i in range(90)])
    if not (folder / "cells.h5ad").exists():
        anndata.AnnData(X=x, obs=obs).write_h5ad(folder / "cells.h5ad")
    return Cells(folder / "cells.h5ad", conditions=["cell.type"], held_out=0.2)


def frame(folder: Path) -> Table:
    pd, rng = pytest.importorskip("pandas"), np.random.default_rng(8)
    values = {"a": rng.normal(5, 3, 60), "dose": rng.normal(100, 20, 60), "b": rng.normal(0, 1e-3, 60)}
    pd.DataFrame({**values, "sex": np.array(["f", "m"])[np.arange(60) % 2]}).to_csv(folder / "table.csv", index=False)
    return Table(folder / "table.csv", conditions=["sex", "dose"], held_out=0.2)


def series(folder: Path) -> Sequences:
    rng = np.random.default_rng(9)
    np.savez(
        folder / "s.npz", values=rng.normal(3, 2, (150, 2)), lengths=1 + np.arange(60) % 4, kind=np.arange(60) % 3
    )
    return Sequences(folder / "s.npz", conditions=["kind"], held_out=0.2)


def pairs(folder: Path) -> PairedDataset:
    data = Moons(n=160)
    write_pairs(folder, data.train.fetch(np.arange(len(data.train))).x1, {}, store="float32")
    n = len(data.train)

    def starts(places, cond):
        return CounterRng.at(1, 0, places, total=n).normal((len(places), 2))

    return PairedDataset(data, Pairs([folder], n, starts, "float32"), n)


SOURCES: dict[str, Callable[[Path], Dataset]] = {
    "digits": lambda folder: Digits(),
    "moons": lambda folder: Moons(n=60),
    "fashion-mnist": fashion_mnist,
    "image-folder": image_folder,
    "hub-images": hub_images,
    "mnist": mnist,
    "array-file": array_file,
    "array-file, vectors": vector_file,
    "packed": packed,
    "shards": shards,
    "parquet-images": parquet,
    "celeba": celeba,
    "cifar": cifar,
    "cells": cells,
    "arrays, a table": table,
    "arrays, pictures": pictures,
    "table": frame,
    "sequences": series,
    "pairs": pairs,
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


def test_every_registered_format_has_an_example():
    assert set(registry.choices("data-format")) <= {name.split(",")[0] for name in SOURCES}


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
    if source.spec.modality == "image":
        assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.1
    else:
        assert x.mean(0).abs().max() < 0.3 and (x.std(0) - 1).abs().max() < 0.3


def test_the_way_back_to_data_units_and_forth_again(source):
    x = everything(source.train).x1
    torch.testing.assert_close(source.transform.forward(source.transform.inverse(x)), x, rtol=1e-4, atol=1e-4)
    config = json.loads(json.dumps(source.transform.to_config()))
    again = transform_from_config(config, source.transform.tensors())
    assert torch.equal(again.inverse(x), source.transform.inverse(x))


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
