"""Data files that lie, never end or unpack to more than fits: one sentence, at once, from the tools that open them."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect.core.errors import UserError
from advect.core.files import open_regular
from advect.data import numpy_files, text_files
from advect.data.array_files import ArrayFile
from advect.data.autodetect import autodetect
from advect.data.images import cifar
from advect.data.images.folder import ImageFolder
from advect.data.images.idx import read_idx
from advect.data.numpy_files import check_arrays
from advect.data.sequences.dataset import Sequences
from advect.data.tables.files import read_table
from advect.data.text_files import open_text


def npy_claiming(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """A ``.npy`` whose header has this shape of float64."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def npz_claiming(place: Path, shape: tuple[int, ...]) -> Path:
    """A ``.npz`` with an array x whose header has this shape."""
    content = npy_claiming(shape)
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return place


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6), (2**40, 2**40), (3, 4)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_headers_that_claim_more_than_there_is_are_told_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...], suffix: str
) -> None:
    file = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        file.write_bytes(npy_claiming(shape))
    else:
        npz_claiming(file, shape)
    with pytest.raises(UserError, match=r"claims .* for its shape"):
        ArrayFile(file)
    with pytest.raises(UserError, match=r"claims .* for its shape"):
        Sequences(file)


def test_the_memory_of_an_archive_is_told_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(numpy_files, "check_memory", lambda what, need, fix: asked.append(need))
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 100)), y=np.zeros(1000, np.int8))
    np.save(tmp_path / "x.npy", np.zeros((1000, 100)))
    check_arrays(tmp_path / "x.npz")
    check_arrays(tmp_path / "x.npy")
    check_arrays(tmp_path / "x.npy", mapped=True)
    assert asked == [801_000, 800_000, 0]


def test_honest_arrays_pass(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "y.npz", x=x, y=np.arange(40))
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    for name in ("x.npy", "y.npz", "f.npy"):
        check_arrays(tmp_path / name)
        assert len(ArrayFile(tmp_path / name).train) > 20


def test_a_packed_table_on_one_endless_line_is_refused_while_it_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 10**6)
    file = tmp_path / "bomb.csv.gz"
    with gzip.open(file, "wb") as packed:
        packed.write(b"a,b\n" + b"1" * 10**8)
    assert file.stat().st_size < 200_000
    with pytest.raises(UserError, match="has a line of more than 1,000,000 bytes"):
        read_table(file)


def test_a_packed_table_that_unpacks_to_more_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_CHECKED", 10**5)
    monkeypatch.setattr(text_files, "check_memory", lambda what, need, fix: (_ for _ in ()).throw(UserError(what)))
    with gzip.open(tmp_path / "t.csv.gz", "wb") as packed:
        packed.write(b"a,b\n" + b"1,2\n" * 10**5)
    with pytest.raises(UserError, match="unpacks to more"), open_text(tmp_path / "t.csv.gz") as lines:
        list(lines)


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,\xc3\xa9\n")
    with open_text(tmp_path / "t.csv") as lines:
        assert lines.readlines() == ["a,b\r\n", "1,é\n"]
        lines.seek(0)
        assert lines.read() == "a,b\r\n1,é\n"


def test_a_packed_idx_file_unpacks_no_further_than_its_header_says(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 2, 2)
    with gzip.open(tmp_path / "x.gz", "wb") as packed:
        packed.write(header + bytes(8))
    assert read_idx(tmp_path / "x.gz", ndim=3).shape == (2, 2, 2)
    with gzip.open(tmp_path / "y.gz", "wb") as packed:
        packed.write(header + bytes(10**8))
    with pytest.raises(UserError, match=r"has 1 bytes after the 8 of its shape"):
        read_idx(tmp_path / "y.gz", ndim=3)
    with gzip.open(tmp_path / "z.gz", "wb") as packed:
        packed.write(bytes([0, 0, 8, 3]) + struct.pack(">III", 2**31, 2**31, 2**31))
    with pytest.raises(UserError, match="of memory, and there are"):
        read_idx(tmp_path / "z.gz", ndim=3)


@pytest.mark.parametrize(
    "name", ["x.npy", "x.npz", "x.csv", "x.parquet", "x.h5ad", "x.tar", "x.zip", "x.png", "x.csv.gz", "x"]
)
def test_a_pipe_named_as_data_is_refused_and_never_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe, socket or device; give a file or folder"):
        autodetect(tmp_path / name)


@pytest.mark.parametrize(
    "open_it",
    [ArrayFile, read_table, ImageFolder, lambda path: read_idx(path, ndim=3)],
    ids=["arrays", "table", "images", "idx"],
)
def test_readers_refuse_pipes_themselves(tmp_path: Path, open_it: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"pipe, socket or device|is not a file"):
        open_it(tmp_path / "x.csv")


def test_a_pipe_in_the_place_of_a_file_of_a_data_set_is_never_waited_for(tmp_path: Path, advect) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"images/{i}.png")
    advect("data pack images --image-size 8 --output pack")
    (tmp_path / "pack/labels.i64").unlink()
    os.mkfifo(tmp_path / "pack/labels.i64")
    with pytest.raises(UserError, match=r"it is a pipe, socket or device, not a file"):
        advect("train --data pack --dry-run")
    os.mkfifo(tmp_path / "data_batch_1.bin")
    with pytest.raises(OSError, match="it is a pipe, socket or device"):
        cifar._read_binary(tmp_path / "data_batch_1.bin", cifar.LAYOUTS[0])


def test_pipes_and_devices_among_images_are_unreadable_images(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    os.mkfifo(tmp_path / "other")
    assert len(ImageFolder(tmp_path, image_size=8).train) >= 10
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"cannot be read, .*it is a pipe, socket or device, not a file"):
        ImageFolder(tmp_path, image_size=8)


def test_regular_files_and_links_to_them_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "b") as file:
        assert file.read() == b"abc"
    for place in ("/dev/zero", "/dev/null", str(tmp_path)):
        with pytest.raises(OSError):
            open_regular(place)


@pytest.mark.parametrize("place", range(20, 200, 20))
def test_a_damaged_gzip_table_is_named(tmp_path: Path, place: int) -> None:
    rng = np.random.default_rng(0)
    packed = bytearray(gzip.compress(b"a,b\n" + b"".join(b"%f,%f\n" % tuple(x) for x in rng.normal(size=(50, 2)))))
    packed[place] ^= 0xFF
    (tmp_path / "t.csv.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"t\.csv\.gz"):
        read_table(tmp_path / "t.csv.gz")


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,", b"'" * 3, b"{'a': 1}", b"("]
)
def test_a_header_that_is_no_python_is_named(tmp_path: Path, header: bytes) -> None:
    content = header.ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + bytes(24))
    with pytest.raises(UserError, match=r"x\.npy"):
        ArrayFile(tmp_path / "x.npy")
