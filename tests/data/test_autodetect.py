from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect.core import registry
from advect.core.errors import UserError
from advect.core.registry import register
from advect.data.autodetect import autodetect
from advect.data.base import ArrayDataset, Detected
from advect.data.sequences.files import step_columns


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    return path


def names(path: Path) -> list[str]:
    return [registry.name_of(cls) for cls, _ in autodetect(path)]


def name(path: Path) -> str:
    return names(path)[0]


def test_folders(tmp_path):
    png(tmp_path / "pictures" / "deep" / "a.PNG")
    assert name(tmp_path / "pictures") == "image-folder"
    png(tmp_path / "celeba" / "img_align_celeba" / "000001.png")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("")
    assert name(tmp_path / "celeba") == "celeba"
    for files in (("data_batch_1.bin", "test_batch.bin"), ("train", "test", "meta"), ("data_batch_1", "test_batch")):
        folder = tmp_path / "around" / files[0]
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_bytes(b"")
        assert name(folder) == "cifar"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    assert name(tmp_path / "mnist") == "mnist"


def test_folders_called_train_and_test_are_no_cifar(tmp_path):
    for part in ("train", "test", "meta"):
        png(tmp_path / part / "a.png")
    assert name(tmp_path) == "image-folder"


def test_archives_by_their_content(tmp_path):
    image = png(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "pictures", "w") as archive:
        archive.write(image, "x/a.png")
    with tarfile.open(tmp_path / "pictures.tar.gz", "w:gz") as archive:
        archive.add(image, "./a.png")
    assert name(tmp_path / "pictures") == name(tmp_path / "pictures.tar.gz") == "image-folder"
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(UserError, match=r"book\.xlsx' is a file of no kind that is known here; give \.h5ad, \.csv"):
        name(tmp_path / "book.xlsx")


def test_arrays(tmp_path):
    for i, shape in enumerate([(3, 2), (3, 4, 4, 3)]):
        np.save(tmp_path / f"{i}.npy", np.zeros(shape))
        assert name(tmp_path / f"{i}.npy") == "array-file"
    np.save(tmp_path / "bytes.npy", np.zeros((3, 4, 4), np.uint8))
    assert name(tmp_path / "bytes.npy") == "array-file"
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)))
    assert name(tmp_path / "a.npz") == "array-file"
    np.save(tmp_path / "steps.npy", np.zeros((3, 4, 4)))
    assert [(registry.name_of(cls), seen.modality) for cls, seen in autodetect(tmp_path / "steps.npy")] == [
        ("sequences", "sequence"),
        ("array-file", "image"),
    ]
    np.savez(tmp_path / "ragged.npz", values=np.zeros((9, 2)), lengths=[4, 5])
    assert name(tmp_path / "ragged.npz") == "sequences"
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"without data that is known|no kind that is known"):
        name(tmp_path / "empty.npz")


def test_tables_and_steps(tmp_path):
    (tmp_path / "a.csv").write_text("id,time,x\n" + "".join(f"{i},{i},0\n" for i in range(9)))
    assert name(tmp_path / "a.csv") == "table"
    (tmp_path / "b.tsv").write_text("Series_ID\ttime\tx\n" + "".join(f"{i // 3}\t{i}\t0\n" for i in range(9)))
    assert names(tmp_path / "b.tsv") == ["sequences", "table", "tokens"]
    assert names(tmp_path / "a.csv") == ["table", "sequences", "tokens"]
    assert step_columns(tmp_path / "b.tsv") == ("Series_ID", "time")
    (tmp_path / "d.csv").write_text("Patient,date,x\n" + "".join(f"{i // 3},{i},0\n" for i in range(9)))
    assert step_columns(tmp_path / "d.csv") == ("Patient", "date")
    (tmp_path / "c.h5ad").write_bytes(b"")
    assert name(tmp_path / "c.h5ad") == "cells"


def test_a_tar_is_a_shard_where_images_have_companions(tmp_path):
    image = png(tmp_path / "a" / "0.png")
    (tmp_path / "0.cls").write_text("1")
    for tar, members in (("plain.tar", ["0.png"]), ("shard.tar", ["0.png", "0.cls"])):
        with tarfile.open(tmp_path / tar, "w") as archive:
            for member in members:
                archive.add(image if member == "0.png" else tmp_path / member, member)
    assert name(tmp_path / "plain.tar") == "image-folder"
    assert names(tmp_path / "shard.tar") == ["shards", "image-folder"]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shard.tar").rename(tmp_path / "shards" / "000.tar")
    assert name(tmp_path / "shards") == "shards"


def test_datasets_and_parquet_with_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    images = datasets.Dataset.from_dict({"a": [1], "image": [{"bytes": file.getvalue(), "path": None}]})
    images.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    images.to_parquet(tmp_path / "parquet" / "train.parquet")
    for path in ("saved", "parquet", "parquet/train.parquet"):
        assert name(tmp_path / path) == "hub-images"
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "table.parquet")
    assert name(tmp_path / "table.parquet") == "table"


def test_a_format_of_ones_own_goes_before_and_after_others(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")

    class Ledger(ArrayDataset):
        place = "the ledger"
        priority = 61

        @classmethod
        def recognises(cls, path):
            return Detected(cls.priority, "a ledger", "vector") if path.suffix == ".csv" else None

    register("ledger")(Ledger)
    try:
        assert names(tmp_path / "a.csv") == ["ledger", "table", "sequences", "tokens"]
        Ledger.priority = 1
        assert names(tmp_path / "a.csv") == ["table", "sequences", "tokens", "ledger"]
    finally:
        registry.unregister(Ledger)
    with pytest.raises(UserError, match="'nowhere' does not exist"):
        autodetect("nowhere")
