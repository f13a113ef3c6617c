from __future__ import annotations

import ctypes
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.data.images.parquet import ParquetImages, ParquetStore
from advect.training import Loader

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in range(3):
        rows = range(part * 30, part * 30 + 30)
        images = [{"bytes": png(i), "path": f"{i}.png"} for i in rows]
        table = pa.table({"image": images, "plain": [png(i) for i in rows], "kind": ["ab"[i % 2] for i in rows]})
        pq.write_table(table, tmp_path / f"part-{part:03}.parquet", row_group_size=5)
    return tmp_path


@pytest.mark.parametrize("column", ["image", "plain"])
def test_rows_come_in_any_order_with_few_groups_in_memory(folder, column):
    store = ParquetStore(folder, image=column, label="kind")
    assert store.sizes == [5] * 18 and store.names[31] == "part-001.parquet:1"
    for index in np.random.default_rng(0).permutation(90):
        assert store.read(int(index)) == png(int(index))
        assert len(store._kept) <= 10
    assert store.classes.names == ("a", "b") and store.classes.labels.tolist() == [0, 1] * 45


def test_an_epoch_decodes_each_row_group_once(folder, monkeypatch):
    split = ParquetImages(folder, image_size=8, held_out=0).train
    decoded, decode = [], ParquetStore._decode
    monkeypatch.setattr(ParquetStore, "_decode", lambda self, group: decoded.append(group) or decode(self, group))
    loader = Loader(split, 10, seed=0)
    seen = torch.cat([loader.batch(step).x1 for step in range(9)])
    assert {x.numpy().tobytes() for x in seen} == {x.numpy().tobytes() for x in split.fetch(np.arange(90)).x1}
    assert sorted(decoded[:18]) == list(range(18))


def test_opening_and_a_pass_hold_a_few_row_groups(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (320, 64, 64, 3), dtype=np.uint8)
    images = []
    for pixels in content:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "BMP")
        images.append(buffer.getvalue())
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=4, use_dictionary=False)
    del images, content
    total, before = (tmp_path / "a.parquet").stat().st_size, pa.total_allocated_bytes()
    assert total > 3.9e6
    tracemalloc.start()
    loader = Loader(ParquetImages(tmp_path, image_size=8, held_out=0).train, 4, seed=0)
    most = 0
    for step in range(80):
        loader.batch(step)
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < total / 4 and most < total / 10  # ten row groups of the eighty are kept


class _Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 tells; pyarrow's C++ takes memory that no counter of Python or of Arrow's pool sees."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "mapped", "usmblks"))
    _fields_ += tuple((name, ctypes.c_size_t) for name in ("fsmblks", "used", "free", "keepcost"))


def test_no_file_keeps_what_was_read_of_it(tmp_path):
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("needs glibc 2.33 or later")
    mallinfo.restype = _Mallinfo
    noise = np.random.default_rng(0)
    for part in range(60):
        table = pa.table({"image": [noise.bytes(2000) for _ in range(100)], "kind": [0] * 100})
        pq.write_table(table, tmp_path / f"{part:02}.parquet")
    store = ParquetStore(tmp_path, label="kind")
    held = mallinfo()
    before = held.used + held.mapped
    for first in range(0, len(store), 100):
        store.read(first)
    held = mallinfo()
    assert held.used + held.mapped - before < 5e6  # of 12 MB; ten files of the sixty are kept


def test_bad_files_and_columns_are_named(folder):
    with pytest.raises(UserError, match=r"part-000\.parquet has no column 'imag'; did you mean 'image'\?"):
        ParquetStore(folder, image="imag")
    with pytest.raises(UserError, match=r"column 'kind' of .* holds no image bytes"):
        ParquetStore(folder, image="kind")
    (folder / "part-001.parquet").write_bytes(b"PAR1 hello")
    with pytest.raises(UserError, match=r"part-001\.parquet is a damaged Parquet file"):
        ParquetStore(folder)
