from __future__ import annotations

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.data import ImageFolder
from advect.data.images.stores import TarStore, ZipStore, open_store

KINDS = ["stored.zip", "deflated.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "ünï pictures"
    for i in range(24):
        path = root / ("cat", "dog", "hen")[i % 3] / f"{i}.{('png', 'jpg', 'webp')[i % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 9 + i, 3), dtype=np.uint8)).save(path)
    (root / "notes.txt").write_text("not an image")
    (root / "cat" / "._1.png").write_bytes(b"what a Mac leaves")
    return root


def pack(root: Path, name: str, *, inside: str = "") -> Path:
    """The folder as an archive whose kind the name tells, everything in a folder ``inside``."""
    path = root.parent / name
    if name.endswith("zip"):
        how = zipfile.ZIP_DEFLATED if "deflated" in name else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", how) as archive:
            for file in sorted(root.rglob("*"), reverse=True):
                archive.write(file, inside + file.relative_to(root).as_posix())
        return path
    with tarfile.open(path, f"w:{name.split('.')[2]}" if name.count(".") > 1 else "w") as archive:
        archive.add(root, inside or ".")
    return path


def everything(split) -> torch.Tensor:
    return split.fetch(np.arange(len(split))).x1


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_the_folder_that_was_packed(folder, name):
    plain = ImageFolder(folder, image_size=8, held_out=0.3)
    packed = ImageFolder(pack(folder, name), image_size=8, held_out=0.3)
    assert packed.fingerprint == plain.fingerprint
    assert packed.spec == plain.spec and packed.spec.conditions["label"].names == ("cat", "dog", "hen")
    for split, other in ((plain.train, packed.train), (plain.held_out, packed.held_out)):
        assert split.names == other.names
        ours, theirs = (s.fetch(np.arange(len(s)), CounterRng(1, 2, len(s))) for s in (split, other))
        assert torch.equal(ours.x1, theirs.x1) and torch.equal(ours.cond["label"], theirs.cond["label"])


def test_a_folder_around_everything_names_no_class(folder):
    source = ImageFolder(pack(folder, "wrapped.zip", inside="wrapped/"), image_size=8)
    assert source.spec.conditions["label"].names == ("cat", "dog", "hen")


@pytest.mark.parametrize("name", KINDS)
def test_large_files_are_known_by_the_same_bytes_in_every_store(folder, name):
    Image.effect_noise((200, 200), 80).save(folder / "large.png")
    assert (folder / "large.png").stat().st_size > 20_000
    store, other = open_store(folder), open_store(pack(folder, name))
    assert [store.digest(i) for i in range(len(store))] == [other.digest(i) for i in range(len(other))]
    assert [store.read(i) for i in range(len(store))] == [other.read(i) for i in range(len(other))]
    assert [store.size(i) for i in range(len(store))] == [other.size(i) for i in range(len(other))]


@pytest.mark.parametrize("name", KINDS[:4])
def test_threads_read_what_one_thread_reads(folder, name):
    store = open_store(pack(folder, name))
    wanted = [i % len(store) for i in range(400)]
    expected = [store.read(i) for i in range(len(store))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.read, wanted)) == [expected[i] for i in wanted]


def test_forks_share_no_position(folder):
    store = open_store(pack(folder, "a.tar"))
    expected = [store.read(i) for i in range(len(store))]
    child = os.fork()
    same = all(store.read(i) == expected[i] for _ in range(20) for i in range(len(store)))
    if child == 0:
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0 and same


def test_the_last_of_two_members_of_one_name_counts_and_links_lead_to_their_file(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"old", b"new"):
            member = tarfile.TarInfo("sub/a.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind, target in (
            ("hard.png", tarfile.LNKTYPE, "sub/a.png"),
            ("sub/s.png", tarfile.SYMTYPE, "a.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    store = TarStore(tmp_path / "a.tar")
    assert [store.read(i) for i in range(len(store))] == [b"new"] * 3
    assert store.names == ["hard.png", "sub/a.png", "sub/s.png"]


def test_members_that_lead_out_are_refused(tmp_path):
    for bad in ("../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(bad, b"")
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(bad))
        for name in ("a.zip", "a.tar"):
            with pytest.raises(UserError, match=r"has the member .*, which leads out of it; do not trust it"):
                open_store(tmp_path / name)


def test_damaged_archives_are_named(folder):
    zipped, tar, packed = (pack(folder, name) for name in ("stored.zip", "a.tar", "a.tar.gz"))
    for path, words in (
        (zipped, "neither a whole zip nor a tar archive"),
        (packed, "is a damaged archive (Compressed file ended before"),
        (tar, "is a damaged archive ("),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError) as error:
            source = ImageFolder(path, image_size=8, held_out=0)
            everything(source.train)
        assert words in str(error.value) and path.name in str(error.value)
        assert "\n" not in str(error.value)


def test_a_flipped_byte_in_a_zip_is_found_by_the_checksum(folder):
    path = pack(folder, "stored.zip")
    store = ZipStore(path)
    content = bytearray(path.read_bytes())
    place = content.find(store.read(5)) + 30
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        ImageFolder(path, skip_unreadable=False)
    assert f"{path}: {store.names[5]} cannot be read (its checksum in the archive is another)" in str(error.value)


def test_a_deflated_member_that_does_not_unpack_is_named(tmp_path):
    path = tmp_path / "deflated.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(4000))
        member = archive.getinfo("a.png")
    store = ZipStore(path)
    with path.open("r+b") as file:
        file.seek(member.header_offset + 30 + len("a.png"))
        file.write(b"\xff" * member.compress_size)
    with pytest.raises(ValueError, match="does not unpack: Error -3"):
        store.read(0)


def test_zips_that_cannot_be_read_in_place_say_so(folder):
    path = folder.parent / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(folder / "cat" / "0.png", "0.png")
    with pytest.raises(UserError, match=r"has '0\.png' compressed in a way other than deflate; unpack it"):
        open_store(path)


def test_an_archive_without_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", b"none")
    with pytest.raises(UserError, match=r"a\.zip' holds no image"):
        ImageFolder(tmp_path / "a.zip")
