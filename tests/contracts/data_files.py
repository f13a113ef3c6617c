"""A small data set of each format, under the format's name, and of what is no format; each writes its files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect.core.random import CounterRng
from advect.data import (
    ArrayFile,
    Arrays,
    CelebA,
    Cells,
    Cifar,
    Digits,
    FashionMnist,
    HubImages,
    ImageFolder,
    Mnist,
    Moons,
    Packed,
    ParquetImages,
    Sequences,
    Shards,
    Table,
    Tokens,
    pack,
)
from advect.data.pairs import PairedDataset, Pairs, write_pairs


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
    return ArrayFile(folder / "images.npy", held_out=0.3)


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


def parquet_images(folder: Path) -> ParquetImages:
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


def arrays(folder: Path) -> Arrays:
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


def table(folder: Path) -> Table:
    pd, rng = pytest.importorskip("pandas"), np.random.default_rng(8)
    values = {"a": rng.normal(5, 3, 60), "dose": rng.normal(100, 20, 60), "b": rng.normal(0, 1e-3, 60)}
    pd.DataFrame({**values, "sex": np.array(["f", "m"])[np.arange(60) % 2]}).to_csv(folder / "table.csv", index=False)
    return Table(folder / "table.csv", conditions=["sex", "dose"], held_out=0.2)


def sequences(folder: Path) -> Sequences:
    rng = np.random.default_rng(9)
    np.savez(
        folder / "s.npz", values=rng.normal(3, 2, (150, 2)), lengths=1 + np.arange(60) % 4, kind=np.arange(60) % 3
    )
    return Sequences(folder / "s.npz", conditions=["kind"], held_out=0.2)


def tokens(folder: Path) -> Tokens:
    rng = np.random.default_rng(10)
    lines = ["".join(rng.choice(list("abc"), 3 + i % 5)) for i in range(60)]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    return Tokens(folder / "lines.txt", held_out=0.2)


def stream(folder: Path) -> Tokens:
    rng = np.random.default_rng(11)
    (folder / "stream.txt").write_text("".join(rng.choice(list("abc \n"), 400)))
    return Tokens(folder / "stream.txt", layout="stream", max_length=8, held_out=0.2)


def pairs(folder: Path) -> PairedDataset:
    data = Moons(n=160)
    write_pairs(folder, data.train.fetch(np.arange(len(data.train))).x1, {}, store="float32")
    n = len(data.train)

    def starts(places, cond):
        return CounterRng.at(1, 0, places, total=n).normal((len(places), 2))

    return PairedDataset(data, Pairs([folder], n, starts, "float32"), n)


def digits(folder: Path) -> Digits:
    return Digits()


def moons(folder: Path) -> Moons:
    return Moons(n=60)
