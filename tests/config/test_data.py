"""Every format of data: recognised, trained on for two steps, loaded without the data, and sampled."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect import load
from advect.config.arguments import describe, parse_train
from advect.config.presets import folded_unet
from advect.core.errors import UserError
from advect.core.types import LENGTH
from advect.data import pack
from advect.sources import Empirical
from own_data import cells, table

QUICK = "--max-steps 2 --batch-size 4 --sample-every 0 --log-every 1 --lr-warmup-steps 0 --run-dir run"
UNET = "--model-channels 8 --channel-mult 1 1 --attention-resolutions --num-res-blocks 1 --num-workers 0"
VECTORS = "--width 8 --depth 1"
STEPS = "--width 8 --depth 1 --heads 2"
RNG = np.random.default_rng(0)


def png(shape: tuple[int, ...] = (12, 9, 3)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def folder(place: Path) -> Path:
    for i in range(12):
        file = place / "a folder" / "äb"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
    return place / "a folder"


def packed(place: Path) -> Path:
    return pack(folder(place), place / "packed", image_size=8, progress=False)


def archive(place: Path) -> Path:
    return Path(shutil.make_archive(str(place / "images"), "zip", folder(place)))


def shards(place: Path) -> Path:
    (place / "shards").mkdir()
    with tarfile.open(place / "shards" / "0.tar", "w") as tar:
        for name, content in ((f"{i}.{s}", png() if s == "png" else b"1") for i in range(12) for s in ("png", "cls")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return place / "shards"


def parquet(place: Path) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"jpg": [png() for _ in range(12)], "kind": [0, 1] * 6}), place / "i.parquet", 5)
    return place / "i.parquet"


def hub(place: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [Image.open(io.BytesIO(png())) for _ in range(12)], "kind": ["a", "b"] * 6}
    datasets.Dataset.from_dict(rows).save_to_disk(str(place / "hub"))
    return place / "hub"


def celeba(place: Path) -> Path:
    (place / "celeba" / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06}.png" for i in range(12)]
    for name in names:
        (place / "celeba" / "img_align_celeba" / name).write_bytes(png((218, 178, 3)))
    (place / "celeba" / "list_eval_partition.txt").write_text("".join(f"{n} {i % 3}\n" for i, n in enumerate(names)))
    rows = "".join(f"{n} {1 - i // 3 % 2 * 2} -1\n" for i, n in enumerate(names))
    (place / "celeba" / "list_attr_celeba.txt").write_text(f"12\nSmiling Male\n{rows}")
    return place / "celeba"


def cifar(place: Path) -> Path:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        table = RNG.integers(0, 256, (3, 3073), dtype=np.uint8)
        table[:, 0] %= 10
        (place / f"{name}.bin").write_bytes(table.tobytes())
    return place


def mnist(place: Path) -> Path:
    for part in ("train", "t10k"):
        for kind, x in (("images-idx3", RNG.integers(0, 256, (8, 12, 12))), ("labels-idx1", np.arange(8) % 4)):
            head = bytes([0, 0, 8, x.ndim]) + b"".join(n.to_bytes(4, "big") for n in x.shape)
            (place / f"{part}-{kind}-ubyte").write_bytes(head + x.astype(np.uint8).tobytes())
    return place


def tarball(place: Path) -> Path:
    return Path(shutil.make_archive(str(place / "images"), "gztar", folder(place)))


def pixels(place: Path) -> Path:
    np.savez(place / "x.npz", x=RNG.integers(0, 256, (20, 8, 12, 3), dtype=np.uint8), y=np.arange(20) % 2)
    return place / "x.npz"


def vectors(place: Path) -> Path:
    np.save(place / "x.npy", RNG.normal(3, 5, (40, 3)))
    return place / "x.npy"


def series(place: Path) -> Path:
    np.savez(place / "s.npz", values=RNG.normal(3, 2, (73, 2)), lengths=1 + np.arange(30) % 4)
    return place / "s.npz"


def equal_lengths(place: Path) -> Path:
    np.save(place / "s.npy", RNG.normal(3, 2, (30, 5, 2)))
    return place / "s.npy"


def visits(place: Path) -> Path:
    pd = pytest.importorskip("pandas")
    visits = pd.DataFrame({"patient": np.arange(80) // 4, "date": np.arange(80) % 4, "x": RNG.normal(size=80)})
    visits.to_parquet(place / "visits.parquet")
    return place / "visits.parquet"


def people(place: Path) -> Path:
    pd = pytest.importorskip("pandas")
    town = pd.Categorical(RNG.choice(["Rome", "Köln"], 60))
    people = pd.DataFrame({"age": RNG.integers(9, 90, 60), "x": RNG.normal(size=60), "town": town})
    people.to_parquet(place / "people.parquet")
    return place / "people.parquet"


def embeddings(place: Path) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"text": ["a"] * 40, "embedding": RNG.normal(size=(40, 3)).tolist(), "label": ["x", "y"] * 20}
    parquet.write_table(arrow.table(table), place / "embeddings.parquet")
    return place / "embeddings.parquet"


def steps(place: Path) -> Path:
    rows = "".join(f"{i // 4},{i % 4},{RNG.normal()},{i // 4 % 2}\n" for i in range(80))
    (place / "steps.csv").write_text(f"id,step,x,kind\n{rows}")
    return place / "steps.csv"


CASES = [
    (folder, "images", "a folder of 12 images in 2 classes", "--image-size 8", UNET, (3, 8, 8), ["label"]),
    (archive, "images", "an archive of 12 images", "--image-size 8 --channels 1 --labels no", UNET, (1, 8, 8), []),
    (tarball, "images", "an archive of 12 images in 2 classes", "--image-size 8", UNET, (3, 8, 8), ["label"]),
    (packed, "images", "a pack of 12 images (3, 8, 8)", "", UNET, (3, 8, 8), ["label"]),
    (shards, "images", "tar shards", "--image-size 8 --held-out 0.2", UNET, (3, 8, 8), ["label"]),
    (parquet, "images", "Parquet", "--image-size 8 --label-column kind", UNET, (3, 8, 8), ["label"]),
    (hub, "images", "Hugging Face", "--image-size 8 --conditions kind", UNET, (3, 8, 8), ["kind"]),
    (celeba, "celeba64", "CelebA", "--image-size 8 --attributes Male Smiling", UNET, (3, 8, 8), ["Male", "Smiling"]),
    (cifar, "cifar10", "CIFAR", "", UNET, (3, 32, 32), ["label"]),
    (mnist, "images", "MNIST", "", UNET, (1, 12, 12), ["label"]),
    (pixels, "images", "20 images (8, 12, 3)", "", UNET, (3, 8, 12), ["label"]),
    (vectors, "arrays", "40 vectors (3,)", "", VECTORS, (3,), []),
    (embeddings, "arrays", "vectors in its column 'embedding'", "", VECTORS, (3,), ["label"]),
    (series, "sequences", "sequences", "--max-length 3", STEPS, (3, 2), [LENGTH]),
    (equal_lengths, "sequences", "30 sequences", "", STEPS, (5, 2), []),
    (visits, "sequences", "one row a step", "", STEPS, (4, 1), []),
    (people, "table", "one row a sample", "", VECTORS, (3,), []),
    (steps, "sequences", "one row a step", "--conditions kind", STEPS, (4, 1), ["kind"]),
    (table, "table", "one row a sample", "--conditions kind --scaling standard", VECTORS, (3,), ["kind"]),
    (cells, "cells", "90 cells", "--conditions type --space counts", VECTORS, (8,), ["type"]),
    (cells, "cells", "90 cells", "--no-normalise --no-log1p --highly-variable 5", VECTORS, (5,), []),
    (cells, "cells", "90 cells and 8 genes", "--conditions type drug --pca 4", VECTORS, (4,), ["type", "drug"]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "preset", "words", "flags", "net", "shape", "names"), CASES)
def test_data_are_recognised_trained_on_and_sampled_without(
    make: Callable[[Path], Path],
    preset: str,
    words: str,
    flags: str,
    net: str,
    shape: tuple[int, ...],
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from advect.cli import run

    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    place = make(tmp_path / "data")
    run(["train", "--data", str(place), *f"{flags} {net} {QUICK}".split()])
    found = describe(place)
    assert found.preset == preset and words in found.words
    name, again = parse_train(["--config", "run/config.yaml"])
    assert name == preset and again.settings.to_yaml(name) == Path("run/config.yaml").read_text()
    shutil.rmtree("data")
    flow = load("run")
    assert flow.spec.shape == shape and list(flow.spec.conditions) == names
    assert flow.null == bool(set(names) - {LENGTH})
    x = flow.sample(3, steps=2).x
    assert len(x) == 3 and x.ndim == len(shape) + 1
    own = {"cells": "cells", "table": "table", "sequences": "sequence"}
    assert flow.modality.name == own.get(preset, "image" if len(shape) == 3 else "vector")


def test_many_cells_of_many_genes_are_cut_down_unless_asked(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    x = RNG.poisson(0.3, (500, 2001)).astype(np.float32)
    anndata.AnnData(x).write_h5ad(tmp_path / "many.h5ad")
    anndata.AnnData(x[:499, :600]).write_h5ad(tmp_path / "few.h5ad")
    assert describe(tmp_path / "many.h5ad").flags[4:] == ["--highly-variable", "2000", "--pca", "50"]
    assert describe(tmp_path / "few.h5ad").flags[4:] == []
    _, asked = parse_train(["--data", str(tmp_path / "many.h5ad"), "--pca", "None", "--highly-variable", "9"])
    assert asked.settings.data.pca is None and asked.settings.data.highly_variable == 9


def test_cells_start_from_controls(advect: Callable[..., None], tmp_path: Path) -> None:
    place = cells(tmp_path)
    advect("train cells --data", place, VECTORS, QUICK, "--control drug=none --conditions type drug --no-standardise")
    flow = load("run")
    assert isinstance(flow.source, Empirical) and list(flow.source.cond) == ["type"]
    assert flow.source.x.shape[1] == 8 and 20 <= len(flow.source.x) <= 30
    assert flow.spec.conditions["drug"].names == ("x", "y")
    with pytest.raises(UserError, match="--source sparse and data that bring their own starts contradict"):
        advect("train cells --data", place, VECTORS, "--control drug=none --source sparse --run-dir other")
    assert not Path("other").exists()
    advect("train --resume-from run --max-steps 3")
    kept = tmp_path / "run/checkpoints/step-00000003"
    assert (kept / "state/data.safetensors").is_file()
    assert torch.equal(load(kept / "model.safetensors", ema=False).source.x, flow.source.x)
    shutil.copy(kept / "model.safetensors", "alone.safetensors")
    with pytest.raises(UserError, match=r"cannot be used apart from its checkpoint.*give the checkpoint's folder"):
        load("alone.safetensors")


def test_a_matching_pack_is_used_and_said(
    advect: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path).rename(tmp_path / "faces")
    advect("data pack faces --image-size 8")
    advect("data verify faces.packed-3x8x8")
    assert "is whole: 12 images (3, 8, 8)" in capsys.readouterr().out
    for extra, used in (("--image-size 8", True), ("--image-size 12", False), ("--image-size 8 --crop 8", False)):
        advect("train --data faces", extra, UNET, QUICK)
        assert ("reading the images packed in" in capsys.readouterr().out) == used
        shutil.rmtree("run")
    next(place.rglob("*.png")).write_bytes(png())
    advect("train --data faces --image-size 8", UNET, QUICK)
    said = capsys.readouterr().out
    assert "reading the images packed" not in said
    assert "note: the images have changed since" in said and "faces.packed-3x8x8 was packed" in said
    pixels_file = tmp_path / "faces.packed-3x8x8" / "data.u8"
    content = bytearray(pixels_file.read_bytes())
    content[7] ^= 1
    pixels_file.write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was packed, within images 0 to 11"):
        advect("data verify faces.packed-3x8x8")


def test_a_named_preset_wins_where_it_fits(tmp_path: Path) -> None:
    place, csv = folder(tmp_path), steps(tmp_path)
    assert describe(place, "celeba64").preset == "celeba64"
    assert describe(csv).flags[4:] == ["--id-column", "id", "--order-column", "step"]
    assert describe(csv, "table").flags[3] == "table"
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 8)))
    assert (describe(tmp_path / "a.npy").preset, describe(tmp_path / "a.npy", "images").preset) == (
        "sequences",
        "images",
    )
    assert describe("s3://bucket/{000..009}.tar").flags[3] == "shards"


def test_the_unet_follows_the_size_and_flags_win(tmp_path: Path) -> None:
    place = folder(tmp_path)
    _, a = parse_train(["--data", str(place)])
    assert a.settings.data.image_size == 8 and a.settings.network.channel_mult == (1, 2)
    _, a = parse_train(["images", "--data-dir", str(place), "--image-size", "48"])
    assert a.settings.network.channel_mult == (1, 2) and a.settings.network.patch_size == 4
    _, a = parse_train(["--data", str(place), "--channel-mult", "1", "1"])
    assert a.settings.network.channel_mult == (1, 1)
    _, a = parse_train(["--data", str(place), "--network", "dit", "--width", "32"])
    assert a.settings.network.width == 32
    _, a = parse_train(["celeba64", "--data-dir", str(celeba(tmp_path)), "--attributes", "Male"])
    assert a.settings.data.attributes == ("Male",) and a.settings.data.data_format == "celeba"


def test_a_gpu_gets_the_full_unet_and_a_cpu_maps_of_some_sixteen_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {8: (1, (1, 2)), 28: (2, (1, 2)), 32: (2, (1, 2)), 48: (4, (1, 2)), 64: (4, (1, 2)), 128: (4, (1, 2, 2))}
    for size, (fold, mult) in lengths.items():
        network = folded_unet(size, size)
        assert (network.patch_size, network.channel_mult) == (fold, mult)
        network.build("network", shape=(3, size, size))
    assert folded_unet(28, 30).patch_size == 1 and folded_unet(25, 25).channel_mult == (1,)
    place = str(cifar(tmp_path))
    for gpu, channels in ((False, 64), (True, 128)):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        assert parse_train(["--data", place])[1].settings.network.model_channels == channels
    _, a = parse_train(["images", "--data-dir", str(folder(tmp_path)), "--image-size", "48"])
    assert a.settings.network.channel_mult == (1, 2, 2, 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert parse_train(["images", "--data-dir", str(shards(tmp_path))])[1].settings.network == folded_unet(64, 64)


def test_a_configuration_keeps_its_format_and_its_data_may_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place, told = celeba(tmp_path), []
    name, a = parse_train(["images", "--data-dir", str(place), "--data-format", "image-folder"])
    text = a.settings.to_yaml(name)
    Path("config.yaml").write_text(text)
    moved = place.rename(tmp_path / "moved")
    _, again = parse_train(["--config", "config.yaml", "--data", "moved"], told)
    assert again.settings.data.data_format == "image-folder" and again.settings.data.data_dir == moved
    assert told == ["moved is a folder of 12 images: preset images"]
    with pytest.raises(UserError, match=r"--data-format celeba and the run's config.yaml, which has image-folder"):
        parse_train(["--config", "config.yaml", "--data-format", "celeba"])
    with pytest.raises(UserError, match="cannot be read as --data-format image-folder"):
        parse_train(["--config", "config.yaml", "--data", str(table(tmp_path))])
    old = text.replace("  data_format: image-folder\n", "").replace("celeba", "moved")
    Path("config.yaml").write_text(old)
    assert parse_train(["--config", "config.yaml"])[1].settings.data.data_format == "image-folder"
