from __future__ import annotations

import os

import pytest

from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, make_folder


def test_text_arrives_in_utf8_and_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    atomic_write_text(path, "grün\n")
    assert path.read_bytes() == b"gr\xc3\xbcn\n"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_changes_nothing(tmp_path, old):
    path = tmp_path / "a.bin"
    if old is not None:
        path.write_bytes(old)

    def write(partial):
        partial.write_bytes(b"half of the new content")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_write(path, write)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_until_the_last_moment_readers_see_the_old_file(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.txt", []
    path.write_text("old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(path.read_text()), fsync(handle)))
    atomic_write(path, lambda partial: (partial.write_text("new"), seen.append(path.read_text())))
    # While writing and when the new content is synced it is the old one; when the folder is, the new one.
    assert seen == ["old", "old", "new"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        atomic_write(path, lambda partial: None)
    assert path.read_text() == "old"


def test_make_folder_makes_parents_and_leaves_no_trace(tmp_path):
    folder = tmp_path / "a" / "b"
    assert make_folder(folder, "--run-dir") == folder
    (folder / "kept").touch()
    make_folder(folder, "--run-dir")
    assert os.listdir(folder) == ["kept"]


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_place_below_a_file_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError) as caught:
        make_folder(file / below, "--output-dir")
    message = str(caught.value)
    assert message.startswith(f"--output-dir {file / below} cannot be written to (")
    assert "choose a folder of your own" in message
    assert os.listdir(tmp_path) == ["file"]


def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write everywhere")
        with pytest.raises(UserError, match="Permission denied"):
            make_folder(tmp_path, "--run-dir")
        with pytest.raises(UserError, match="Permission denied"):
            make_folder(tmp_path / "new", "--run-dir")
    finally:
        tmp_path.chmod(0o755)
