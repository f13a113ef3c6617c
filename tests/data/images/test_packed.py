from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.data import ImageFolder
from advect.data.images import packing
from advect.data.images.decoding import Decoder
from advect.data.images.memmap_images import Packed, matching_pack, packed_path
from advect.data.images.packing import pack

SETTINGS = {"image_size": 8, "channels": 3}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def blocks_of_four(monkeypatch) -> None:
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 4 * 8 * 8 * 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pack_is_the_folder_decoded(images, tmp_path):
    folder, packed = ImageFolder(images, image_size=8), Packed(pack(images, tmp_path / "p", **SETTINGS))
    assert (packed.spec, packed.fingerprint, packed.transform) == (folder.spec, folder.fingerprint, folder.transform)
    for ours, theirs in ((packed.train, folder.train), (packed.held_out, folder.held_out)):
        assert len(ours) == len(theirs)
        everything = np.arange(len(ours))
        for rng in (lambda n: None, lambda n: CounterRng(1, 2, n)):
            a, b = ours.fetch(everything, rng(len(ours))), theirs.fetch(everything, rng(len(ours)))
            assert torch.equal(a.x1, b.x1) and torch.equal(a.cond["label"], b.cond["label"])
    packed.verify()


_KILLED = """
import os, signal, sys
from advect.data.images import packing
packing._BLOCK_BYTES = 4 * 8 * 8 * 3
calls, stop, where = [0], int(sys.argv[3]), sys.argv[4]
real = getattr(packing, where)
def fatal(*args, **kwargs):
    calls[0] += 1
    if calls[0] == stop:
        if where == "_flush":  # half a block reaches the disk
            args[0].write(args[1][: len(args[1]) // 2])
            args[0].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(packing, where, fatal)
packing.pack(sys.argv[1], sys.argv[2], image_size=8, channels=3, progress=False)
"""


@pytest.mark.parametrize(("where", "stop"), [("_decode", 1), ("_flush", 3), ("_flush", 10), ("atomic_write_text", 3)])
def test_killed_anywhere_it_ends_in_the_same_bytes(images, tmp_path, blocks_of_four, where, stop):
    unbroken = contents(pack(images, tmp_path / "unbroken", **SETTINGS, progress=False))
    broken = tmp_path / "broken"
    args = [sys.executable, "-c", _KILLED, str(images), str(broken), str(stop), where]
    assert subprocess.run(args, env=os.environ).returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="is an unfinished pack"):
        Packed(broken)
    assert contents(pack(images, broken, **SETTINGS, progress=False)) == unbroken


def test_what_a_kill_behind_the_manifest_leaves_is_tidied_away(images, tmp_path):
    folder = pack(images, tmp_path / "p", **SETTINGS)
    before = contents(folder)
    (folder / "plan.json").write_text("{}")
    (folder / "blocks.sha256").write_text("")
    assert contents(pack(images, folder, **SETTINGS)) == before


def test_a_verified_block_is_not_decoded_again_and_a_damaged_one_is(images, tmp_path, blocks_of_four, monkeypatch):
    unbroken = contents(pack(images, tmp_path / "unbroken", **SETTINGS))
    decode, rows = packing._decode, []

    def noting(store, decoder, row, reasons):
        rows.append(row)
        if row == 30 and fails:
            raise UserError("enough")
        return decode(store, decoder, row, reasons)

    monkeypatch.setattr(packing, "_decode", noting)
    fails = True
    with pytest.raises(UserError, match="enough"):
        pack(images, tmp_path / "p", **SETTINGS, workers=1)
    with (tmp_path / "p" / "data.u8").open("r+b") as file:
        file.seek(4 * 192 * 5)  # the sixth block of seven
        file.write(b"\0" * 192)
    rows.clear()
    fails = False
    pack(images, tmp_path / "p", **SETTINGS, workers=1)
    assert rows == list(range(20, 40))
    assert contents(tmp_path / "p") == unbroken


def test_verify_names_the_images_of_a_flipped_byte(images, tmp_path, blocks_of_four):
    packed = Packed(pack(images, tmp_path / "p", **SETTINGS))
    path = tmp_path / "p" / "data.u8"
    content = bytearray(path.read_bytes())
    content[17 * 192 + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.u8 has changed since it was packed, within images 16 to 19;"):
        packed.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data\.u8 has 7679 bytes and not 7680"):
        Packed(tmp_path / "p")


def test_a_pack_beside_the_images_is_found_while_they_are_the_same(images):
    decoder = Decoder(**SETTINGS)
    assert matching_pack(images, decoder) is None
    folder = pack(images, packed_path(images, decoder), **SETTINGS)
    assert folder.name == "pictures.packed-3x8x8"
    assert matching_pack(images, decoder) == matching_pack(folder, decoder) == folder
    assert matching_pack(images, Decoder(image_size=8, channels=1)) is None
    assert matching_pack(images, Decoder(image_size=8, background="black")) is None
    (images / "a" / "00.png").unlink()
    assert matching_pack(images, decoder) is None


@pytest.mark.parametrize("killed", [False, True])
def test_an_unreadable_image_is_left_out_and_named(images, tmp_path, blocks_of_four, monkeypatch, killed):
    whole = Packed(pack(images, tmp_path / "whole", **SETTINGS), held_out=0)
    (images / "a" / "20.png").write_bytes((images / "a" / "20.png").read_bytes()[:80])
    if killed:  # the block with it is written, and the call ends in the next
        flush, calls = packing._flush, iter(range(99))
        there = sorted(images.rglob("*.png")).index(images / "a" / "20.png") // 4

        def stop(file, content):
            if next(calls) > there:
                raise OSError(28, "No space left on device")
            flush(file, content)

        monkeypatch.setattr(packing, "_flush", stop)
        with pytest.raises(UserError, match="free some space, and pack again"):
            pack(images, tmp_path / "p", **SETTINGS)
        monkeypatch.setattr(packing, "_flush", flush)
    source = Packed(pack(images, tmp_path / "p", **SETTINGS), held_out=0)
    assert source.left_out == ["a/20.png"] and len(source.train) == len(whole.train) - 1
    source.verify()
    gone = [i for i, name in enumerate(sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png")))
            if name == "a/20.png"]  # fmt: skip
    others = np.delete(np.arange(len(whole.train)), gone)
    a, b = source.train.fetch(np.arange(len(source.train))), whole.train.fetch(others)
    assert torch.equal(a.x1, b.x1) and torch.equal(a.cond["label"], b.cond["label"])
    (images / "a" / "00.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"2 images cannot be read, more than 1%, among them .*\.png"):
        pack(images, tmp_path / "q", **SETTINGS)
    with pytest.raises(UserError, match="is an unfinished pack"):
        Packed(tmp_path / "q")


def test_a_full_disk_is_named(images, tmp_path, blocks_of_four, monkeypatch):
    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_flush", full)
    with pytest.raises(
        UserError, match=r"p/data.u8 could not be written: the disk is full; free some space, and pack"
    ):
        pack(images, tmp_path / "p", **SETTINGS)
    with pytest.raises(UserError, match="is an unfinished pack"):
        Packed(tmp_path / "p")


def test_an_unfinished_pack_is_named_so_wherever_it_is_given(images, tmp_path, blocks_of_four, monkeypatch):
    from advect.cli import run
    from advect.data.autodetect import autodetect

    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_flush", full)
    with pytest.raises(UserError, match="disk is full"):
        pack(images, tmp_path / "p", **SETTINGS)
    assert autodetect(tmp_path / "p")[0][1].words == "an unfinished pack of images"
    for words in (["train", "--data"], ["data", "verify"]):
        with pytest.raises(UserError, match="is an unfinished pack, it has no manifest"):
            run([*words, str(tmp_path / "p")])


def test_a_folder_with_another_pack_is_left_alone(images, tmp_path):
    before = contents(pack(images, tmp_path / "p", **SETTINGS))
    with pytest.raises(UserError, match="holds a pack of other images or sizes"):
        pack(images, tmp_path / "p", image_size=4)
    assert contents(tmp_path / "p") == before
    with pytest.raises(UserError, match="workers must be at least 1, got 0"):
        pack(images, tmp_path / "q", workers=0)
