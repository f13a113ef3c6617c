"""Vectors in a column of a Parquet file, and samples as such a file again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core import registry
from advect.core.errors import UserError
from advect.data import ArrayFile
from advect.data.autodetect import autodetect
from advect.data.vectors.parquet import read_vectors, write_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

X = np.random.default_rng(0).normal(size=(30, 4))
KINDS = {
    "lists": pa.list_(pa.float64()),
    "large": pa.large_list(pa.float32()),
    "fixed": pa.list_(pa.float32(), 4),
    "half": pa.list_(pa.float16()),
    "whole": pa.list_(pa.int16()),
}


def saved(path: Path, vectors: object, kind: object = None, **others: object) -> Path:
    kind = kind or pa.list_(pa.float64())
    table = pa.table({**others, "v": pa.array(vectors, kind)})
    pq.write_table(table, path / "a.parquet", row_group_size=7)
    return path / "a.parquet"


@pytest.mark.parametrize("name", KINDS)
def test_lists_of_any_kind_are_the_same_vectors(tmp_path, name):
    kind = KINDS[name]
    x = np.round(X * 100).astype(np.int16) if name == "whole" else X.astype(kind.value_type.to_pandas_dtype())
    source = ArrayFile(saved(tmp_path, list(x), kind, text=["t"] * 30), held_out=0)
    assert source.spec.shape == (4,) and source.spec.modality == "vector" and not source.spec.conditions
    found = source.transform.inverse(source.train.fetch(np.arange(30)).x1)
    torch.testing.assert_close(found.double(), torch.from_numpy(x.astype(float)), rtol=1e-5, atol=1e-5)
    assert read_vectors(tmp_path / "a.parquet", column="v", labels=()).x.dtype == x.dtype


def test_labels_are_read_beside_them_and_all_comes_back(tmp_path):
    words = np.array(["low", "high"])[(X[:, 0] > 0).astype(int)]
    source = ArrayFile(saved(tmp_path, X.tolist(), label=words, index=np.arange(30)), held_out=0)
    assert source.spec.conditions["label"].names == ("high", "low")
    labels = source.train.fetch(np.arange(30)).cond["label"]
    assert [("high", "low")[i] for i in labels] == words.tolist()
    assert source.metadata == {"column": "v", "label": "label", "type": {"dtype": "float64"}}
    assert not ArrayFile(tmp_path / "a.parquet", labels="no").spec.conditions
    write_vectors(tmp_path / "b.parquet", X, column="v", others={"label": words})
    again = read_vectors(tmp_path / "b.parquet", column=None, labels=("y", "label"))
    assert np.array_equal(again.x, X) and again.labels.tolist() == words.tolist()


def test_a_file_with_vectors_is_recognised_before_it_is_a_table(tmp_path):
    found = autodetect(saved(tmp_path, X.tolist(), n=np.arange(30)))
    assert [(registry.name_of(cls), seen.modality) for cls, seen in found] == [
        ("array-file", "vector"),
        ("table", "table"),
        ("sequences", "sequence"),
        ("tokens", "tokens"),
    ]
    pq.write_table(pa.table({"words": [["a"], ["b"]]}), tmp_path / "b.parquet")
    assert [registry.name_of(cls) for cls, _ in autodetect(tmp_path / "b.parquet")] == ["table", "sequences", "tokens"]


def ragged() -> list:
    rows = X.tolist()
    return [*rows[:20], rows[20][:3], *rows[21:]]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (ragged(), r"a\.parquet has 3 numbers in row 20 of column 'v' and 4 in row 0; make all of its lists equally"),
        ([*X.tolist(), []], "has 0 numbers in row 30 of column 'v' and 4 in row 0"),
        ([*X.tolist(), None], "has nothing in row 30 of column 'v'"),
        ([*X.tolist()[:9], [1.0, None, 2.0, 3.0]], "lacks a number in row 9 of column 'v'"),
        ([*X.tolist(), [1.0, np.nan, 2.0, 3.0]], "has NaN or an infinite value in row 30"),
        ([], "has no rows; give at least one"),
    ],
)
def test_rows_that_are_no_vectors_are_named(tmp_path, rows, text):
    with pytest.raises(UserError, match=text):
        ArrayFile(saved(tmp_path, rows))


def test_columns_and_files_that_cannot_be_used_are_named(tmp_path):
    file = saved(tmp_path, X.tolist(), w=pa.array(X.tolist()), n=np.arange(30))
    with pytest.raises(UserError, match="has the columns of vectors w, v; name one"):
        ArrayFile(file)
    assert ArrayFile(file, vector_column="w").metadata["column"] == "w"
    with pytest.raises(UserError, match=r"has no column 'vv'; did you mean 'v'\?"):
        ArrayFile(file, vector_column="vv")
    with pytest.raises(UserError, match=r"column 'n' of .* holds int64, not lists of numbers"):
        ArrayFile(file, vector_column="n")
    with pytest.raises(UserError, match="has nothing in row 1 of column 'y'"):
        ArrayFile(saved(tmp_path, X.tolist()[:3], y=["a", None, "b"]))
    assert len(ArrayFile(tmp_path / "a.parquet", labels="no", held_out=0).train) == 3
    pq.write_table(pa.table({"n": [1.0, 2.0]}), file)
    with pytest.raises(UserError, match="has no column of lists of numbers, but n; write the vectors as such lists"):
        ArrayFile(file)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"a\.parquet is a damaged Parquet file"):
        ArrayFile(file)
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(UserError, match=r"column is 'v', and .*a\.npy is no Parquet file; leave it out"):
        ArrayFile(tmp_path / "a.npy", vector_column="v")


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("bool", ".npy"), ("uint8", ".npy"), ("uint64", ".npy"), ("int16", ".parquet"), ("int64", ".parquet")],
)
def test_whole_numbers_are_written_in_their_type_and_range(tmp_path, kind, suffix):
    top = {"bool": 1, "int64": 2**53, "uint64": 2**53}.get(kind, 100)
    x = np.array([[top - i % 2, i] for i in range(30)], object).astype(kind)
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", x)
    else:
        saved(tmp_path, x.tolist(), pa.list_(getattr(pa, kind)()), y=np.arange(30) % 3)
    data = ArrayFile(tmp_path / f"a{suffix}", held_out=0)
    batch = data.train.fetch(np.arange(30))
    spread = data.transform.inverse(batch.x1 * 3)
    data.modality.write_data(spread, batch.cond or {}, tmp_path, 0)
    if suffix == ".npy":
        found = np.load(tmp_path / "samples.npz")["x"]
    else:
        again = read_vectors(tmp_path / "samples.parquet", column="v", labels=("y",))
        found = again.x
        assert again.labels.tolist() == (np.arange(30) % 3).tolist()
    assert found.dtype == kind
    assert (found.min(0) == x.min(0)).all() and (found.max(0) == x.max(0)).all()


def test_whole_numbers_that_float64_would_round_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.uint64(2**64 - 1) - np.arange(60, dtype=np.uint64).reshape(30, 2))
    with pytest.raises(UserError, match=r"whole numbers beyond 2\^53 that float64 does not hold"):
        ArrayFile(tmp_path / "a.npy")
