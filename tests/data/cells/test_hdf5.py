"""Files on which the HDF5 library does not end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from advect.core.errors import UserError
from advect.data.cells import hdf5

h5py = pytest.importorskip("h5py")


def file_of(folder: Path, value: int) -> Path:
    path = folder / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file.create_group("obs").attrs["_index"] = "names"
        file["obs/names"] = [b"a" * value]
    return path


def test_a_file_in_which_the_library_goes_round_is_refused_and_a_new_one_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = file_of(tmp_path, 3), hdf5._LOOK
    monkeypatch.setattr(hdf5, "SECONDS", 0.5)
    monkeypatch.setattr(hdf5, "_LOOK", "while True: pass")
    for _ in range(2):
        with pytest.raises(UserError, match=r"cells.h5ad is a damaged .h5ad file: .* no end in it .*; write it again"):
            hdf5.open_h5ad(path)
    monkeypatch.setattr(hdf5, "SECONDS", 30)
    monkeypatch.setattr(hdf5, "_LOOK", whole)
    with hdf5.open_h5ad(file_of(tmp_path, 5)) as file:
        assert list(file["obs/names"]) == [b"aaaaa"]


def test_a_sound_file_is_looked_at_once_and_every_attribute_and_array_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = file_of(tmp_path, 7), tmp_path / "told"
    line = f'open({os.fspath(told)!r}, "a").write(f"{{name}} {{sorted(item.attrs)}};")'
    monkeypatch.setattr(hdf5, "_LOOK", hdf5._LOOK.replace("):\n    for", f"):\n    {line}\n    for"))
    for _ in range(2):
        hdf5.open_h5ad(path).close()
    assert told.read_text() == " [];obs ['_index'];obs/names [];"
