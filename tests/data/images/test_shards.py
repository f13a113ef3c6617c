from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.cli import main
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.data import remote
from advect.data.images.shards import Shards, ShardStore
from advect.data.images.stores import open_store
from advect.training import Loader


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    for s in range(4):
        members = {}
        for i in range(10 * s, 10 * s + 10):
            members[f"{i:06}.png"] = png(i)
            members[f"{i:06}.cls"] = b"%d" % (i % 12)
            members[f"{i:06}.json"] = json.dumps({"caption": "x"}).encode()
        shard(tmp_path / "d" / f"shard-{s:03}.tar", members)
    return tmp_path / "d"


def test_the_ways_to_name_shards(folder):
    names = [str(folder / f"shard-{s:03}.tar") for s in range(4)]
    for address in (folder, f"{folder}/shard-{{000..003}}.tar", f"{folder}/*.tar", names):
        assert remote.list_files(address, ".tar") == names
    assert remote.expand_braces("a{1..2}{08..10}") == [f"a{i}{j}" for i in (1, 2) for j in ("08", "09", "10")]
    with pytest.raises(UserError, match=r"there is no \.tar file at .*shard-004\.tar"):
        ShardStore(f"{folder}/shard-{{003..004}}.tar")
    with pytest.raises(UserError, match="counts backwards"):
        remote.expand_braces("{3..1}")


def test_what_is_read_by_index_is_what_lies_in_the_tar(folder):
    store = ShardStore(folder)
    assert [store.read(i) for i in range(40)] == [png(i) for i in range(40)]
    assert store.names[12] == "shard-001.tar/000012.png" and store.sizes == [10] * 4
    assert store.classes.names == tuple(map(str, range(12)))
    assert store.classes.labels.tolist() == [i % 12 for i in range(40)]
    assert store.title(12).endswith("shard-001.tar: 000012.png")


def test_the_index_is_kept_and_made_again_when_the_shard_changes(folder, monkeypatch):
    before = Shards(folder, image_size=8)
    assert (folder / "shard-000.tar.index.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr("advect.data.images.shards.scan", lambda file: pytest.fail("scanned again"))
        assert Shards(folder, image_size=8).fingerprint == before.fingerprint
    shard(folder / "shard-003.tar", {"000099.png": png(99), "000099.cls": b"3"})
    assert len(ShardStore(folder)) == 31
    assert Shards(folder, image_size=8).fingerprint != before.fingerprint


def test_an_epoch_visits_every_image_once_from_few_shards_at_a_time(folder):
    split = Shards(folder, image_size=8, held_out=0.2).train
    assert sum(split.shards) == len(split)
    whole = {row.numpy().tobytes() for row in split.fetch(np.arange(len(split))).x1}
    loader = Loader(split, len(split), seed=1)
    assert {row.numpy().tobytes() for row in loader.batch(0).x1} == whole and len(whole) == len(split)


@pytest.mark.parametrize("cached", [False, True])
def test_memory_holds_what_the_disk_does(folder, tmp_path, cached):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        system.pipe_file(f"/bucket-{cached}/{path.name}", path.read_bytes())
    cache = tmp_path / "cache" if cached else None
    local = Shards(folder, image_size=8)
    for address in (f"memory://bucket-{cached}", f"memory://bucket-{cached}/shard-{{000..003}}.tar"):
        afar = Shards(address, image_size=8, cache_dir=cache)
        assert (afar.spec, afar.fingerprint) == (local.spec, local.fingerprint)
        indices, n = np.arange(len(local.train)), len(local.train)
        a, b = (s.train.fetch(indices, CounterRng(0, 0, n)) for s in (local, afar))
        assert torch.equal(a.x1, b.x1) and torch.equal(a.cond["label"], b.cond["label"])
    if cached:
        assert len(list(cache.glob("*.tar"))) == 4
        system.rm("/bucket-True", recursive=True)
        assert torch.equal(afar.train.fetch(indices, CounterRng(0, 0, n)).x1, a.x1)


def test_a_pass_holds_no_more_than_its_batches(tmp_path):
    noise = np.random.default_rng(0)
    for s in range(8):
        shard(tmp_path / f"{s}.tar", {f"{s}{i}.bmp": _bmp(noise) for i in range(16)})
    total = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert total > 6e6
    loader = Loader(Shards(tmp_path, image_size=8, held_out=0).train, 4, seed=0)
    loader.batch(0)
    tracemalloc.start()
    for step in range(1, 32):
        loader.batch(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < total / 10


def _bmp(noise) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.png": b"x", "1.jpg": b"x"}, "has two images for sample '1'"),
        ({"1.png": b"x", "1.cls": b"1", "2.png": b"y"}, "2.png has no .cls"),
        ({"1.png": b"x", "1.json": b"{"}, "is a damaged shard ("),
        ({"1.png": b"x", "../2.png": b"y"}, "has the member '../2.png', which leads out"),
        ({}, "holds no image"),
    ],
)
def test_what_is_wrong_with_a_shard_is_said_in_a_sentence(tmp_path, members, words):
    shard(tmp_path / "bad.tar", members)
    with pytest.raises(UserError) as error:
        Shards(tmp_path)
    assert words in str(error.value) and "bad.tar" in str(error.value) and "\n" not in str(error.value)


def test_a_shard_cut_short_is_named(folder):
    path = folder / "shard-002.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"shard-002\.tar is a damaged shard"):
        Shards(folder)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"shard-002\.tar is a damaged shard"):
        Shards(folder)


def test_one_damaged_image_is_passed_over_and_what_is_no_picture_counted(tmp_path, caplog):
    members = {"README.md": b"hello", "notes.cls": b"1"}
    for i in range(150):
        members[f"{i:03}.PNG"] = png(i)[:100] if i == 70 else png(i)
        members[f"{i:03}.CLS"] = "²³"[i % 2].encode()
    shard(tmp_path / "a.tar", members)
    with caplog.at_level("INFO"):
        data = Shards(tmp_path, image_size=8, held_out=0.0)
    assert data.spec.conditions["label"].names == ("²", "³")
    assert "2 files are left out as no picture" in caplog.text
    assert len(data.train.fetch(np.arange(150))) == 150
    assert list(data.unreadable) == [f"{tmp_path}/a.tar: 070.PNG"]
    again = Shards(tmp_path, image_size=8, held_out=0.0, skip_unreadable=False)  # by the kept index
    with pytest.raises(UserError, match=r"070\.PNG cannot be read"):
        again.train.fetch(np.array([70]))


def test_a_link_of_a_tar_may_come_before_its_target_or_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, target in (("d/1.png", "2.png"), ("d/2.png", "../z.png"), ("d/3.png", "none.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        info = tarfile.TarInfo("z.png")
        info.size = len(png(1))
        archive.addfile(info, io.BytesIO(png(1)))
    store = open_store(tmp_path / "a.tar")
    assert store.names == ["d/1.png", "d/2.png", "z.png"] and all(store.read(i) == png(1) for i in range(3))
    assert store.left_out == {"links to nothing in it": 1}


def test_too_many_damaged_images_end_a_training_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    shard(tmp_path / "d" / "a.tar", {f"{i:03}.png": png(i)[:90] if i % 20 == 7 else png(i) for i in range(100)})
    words = "train --data d --image-size 8 --batch-size 1 --model-channels 8 --run-dir run"
    monkeypatch.setattr("sys.argv", ["advect", *words.split(), "--sample-every", "0", "--num-epochs", "2"])
    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert "2 images cannot be read, more than 1%" in err and "(image file is truncated)" in err
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")]
