"""Files of parts joined to one: the rows of all, in the form of one file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from tqdm import tqdm

from advect.data.join_files import join_csv, join_npz, join_parquet
from advect.data.vectors.parquet import write_vectors


@pytest.fixture
def bar() -> tqdm:
    return tqdm(disable=True)


def saved(folder: Path, name: str, **arrays: np.ndarray) -> Path:
    np.savez_compressed(folder / name, allow_pickle=False, **arrays)
    return folder / name


def test_joined_archives_are_the_bytes_of_one(tmp_path: Path, bar: tqdm) -> None:
    arrays = {
        "x": np.random.default_rng(0).standard_normal((9000, 3, 4)).astype(np.float32),
        "label": np.array(["ab", "c", "ä"])[np.arange(9000) % 3],
        "day": np.arange(9000).astype("M8[D]"),
        "flag": np.arange(9000) % 2 == 0,
    }
    ends = [0, 10, 4000, 9000]
    parts = [
        saved(tmp_path, f"{a}.npz", **{name: array[a:b] for name, array in arrays.items()})
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    join_npz(parts, tmp_path / "joined.npz", bar)
    assert (tmp_path / "joined.npz").read_bytes() == saved(tmp_path, "whole.npz", **arrays).read_bytes()


def test_parts_of_several_types_have_the_type_that_holds_them_all(tmp_path: Path, bar: tqdm) -> None:
    first = saved(tmp_path, "a.npz", x=np.array([[1, 255]], np.uint8), c=np.array([3]), d=np.array([True]))
    second = saved(tmp_path, "b.npz", x=np.array([[np.nan, 2.5]]), c=np.array([np.nan]), d=np.array([""]))
    join_npz([first, second], tmp_path / "ab.npz", bar)
    with np.load(tmp_path / "ab.npz") as found:
        np.testing.assert_array_equal(found["x"], [[1, 255], [np.nan, 2.5]])
        np.testing.assert_array_equal(found["c"], [3, np.nan])
        assert found["d"].tolist() == ["True", ""]


def test_joined_tables_of_text_have_one_header_whatever_is_in_it(tmp_path: Path, bar: tqdm) -> None:
    frame = pd.DataFrame({'two\nlines, "quoted"': ["a", "b\nc", "d"], "n": [1, 2, 3]})
    for name, rows in (("whole", frame), ("a", frame[:2]), ("b", frame[2:])):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    join_csv([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "joined.csv", bar)
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_joined_parquet_has_the_types_of_the_whole(tmp_path: Path, bar: tqdm) -> None:
    frame = pd.DataFrame(
        {
            "kind": pd.Categorical(["u", "v", "u", "v"], categories=["v", "u", "w"], ordered=True),
            "word": [None, None, "x", "y"],  # nothing in the first part tells its type
            "count": pd.array([1, 2, None, 4], "Int16"),
            "day": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2020-01-04"]).astype("datetime64[s]"),
        },
        index=pd.Index([5, 6, 7, 8], name="key"),
    )
    for name, rows in (("whole", frame), ("a", frame[:2]), ("b", frame[2:])):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    join_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "joined.parquet", bar)
    joined, whole = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("joined", "whole"))
    pd.testing.assert_frame_equal(joined, whole)
    assert parquet.ParquetFile(tmp_path / "joined.parquet").num_row_groups == 2


def test_joined_lists_stay_lists(tmp_path: Path, bar: tqdm) -> None:
    for name, x in (("a", np.array([[1, 2]], np.uint8)), ("b", np.array([[np.nan, 3]], np.float32))):
        write_vectors(tmp_path / f"{name}.parquet", x, column="v", others={"label": [name]})
    join_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "ab.parquet", bar)
    table = parquet.read_table(tmp_path / "ab.parquet").to_pydict()
    np.testing.assert_array_equal(table["v"], [[1, 2], [np.nan, 3]])


def test_joining_takes_the_memory_of_a_part(tmp_path: Path, bar: tqdm) -> None:
    part = saved(tmp_path, "part.npz", x=np.zeros((1000, 256), np.float32))  # 1 MB
    tracemalloc.start()
    join_npz([part] * 20, tmp_path / "whole.npz", bar)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
