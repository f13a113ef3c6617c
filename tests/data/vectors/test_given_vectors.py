"""Vectors of which some features are known: files of four kinds, answers to the byte, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data.base import category
from advect.data.transforms import Standardize
from advect.data.vectors.modality import Vectors

NAN = float("nan")
X = np.array([[0.1, NAN, -3.0], [NAN, NAN, 1e-3], [1.0, 2.0, 3.0]], np.float32)


def vectors(**metadata) -> Vectors:
    spec = DataSpec((3,), "vector", {"label": category(np.array([0, 1]), ["a", "b"])})
    return Vectors(spec, Standardize([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]), metadata)  # type: ignore[arg-type]


def answered(modality: Vectors, file: Path) -> list[Path]:
    given = modality.read_given(file)
    assert given.values.isnan().tolist() == np.isnan(X).tolist()
    assert [str(value) for value in given.conditions["label"]] == ["a", "b", "b"]
    expected = (torch.from_numpy(X) - torch.tensor([0.0, 1.0, 2.0])) / torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(given.values, expected, equal_nan=True)
    (file.parent / "out").mkdir()
    x = torch.arange(18).reshape(6, 3) + 0.25
    return modality.write_given(x, {"label": torch.tensor([0, 0, 1, 1, 1, 1])}, given, 2, file.parent / "out")


def filled(k: int) -> np.ndarray:
    """The vectors with draw k of ``answered``."""
    return np.where(np.isnan(X), (np.arange(18).reshape(3, 2, 3)[:, k] + 0.25).astype(np.float32), X)


def test_archives_come_back_with_all_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "q.npz", x=X, y=np.array(["a", "b", "b"]), more=np.arange(4))
    files = answered(vectors(), tmp_path / "q.npz")
    assert [file.name for file in files] == ["draw-1.npz", "draw-2.npz"]
    for k, file in enumerate(files):
        with np.load(file) as found:
            assert set(found) == {"x", "y", "more"}
            assert found["x"].dtype == np.float32
            assert found["x"].tobytes() == filled(k).tobytes()
            assert found["more"].tolist() == [0, 1, 2, 3]


def test_parquet_comes_back_with_its_labels(tmp_path: Path) -> None:
    lists = [[None if np.isnan(v) else v for v in row] for row in X.tolist()]
    table = pa.table({"v": pa.array(lists, pa.list_(pa.float32())), "label": ["a", "b", "b"]})
    parquet.write_table(table, tmp_path / "q.parquet")
    for k, file in enumerate(answered(vectors(column="v", label="label"), tmp_path / "q.parquet")):
        back = parquet.read_table(file)
        assert back["v"].to_pylist() == filled(k).tolist()
        assert back["label"].to_pylist() == ["a", "b", "b"]


def test_text_keeps_its_fields(tmp_path: Path) -> None:
    text = 'label,x1,x2,x3\na,"0.10",,-3\nb,NA,nan,1e-3\nb,1.,2,+3.0\n'
    (tmp_path / "q.csv").write_text(text)
    first, second = answered(vectors(), tmp_path / "q.csv")
    assert first.read_text() == 'x1,x2,x3,label\n"0.10",1.25,-3,a\n6.25,7.25,1e-3,b\n1.,2,+3.0,b\n'
    assert second.read_text() == 'x1,x2,x3,label\n"0.10",4.25,-3,a\n9.25,10.25,1e-3,b\n1.,2,+3.0,b\n'


def test_arrays_without_labels_come_back(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", X)
    given = vectors().read_given(tmp_path / "q.npy")
    assert given.conditions == {}
    [file] = vectors().write_given(torch.zeros(3, 3), {}, given, 1, tmp_path)
    assert np.load(file).tobytes() == np.nan_to_num(X).tobytes()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 3)), "asks for nothing"),
        (np.full((2, 3), NAN), "knows nothing"),
        (np.full((2, 4), NAN), r"holds float64 of shape \(2, 4\); give numbers of shape \(n, 3\)"),
        (np.array([[NAN, np.inf, 1.0]]), "has an infinite value in row 0, column 1"),
        (np.array([["a", "b", "c"]]), "give numbers of shape"),
    ],
)
def test_what_is_no_question_is_one_sentence(tmp_path: Path, x: np.ndarray, words: str) -> None:
    np.save(tmp_path / "q.npy", x)
    with pytest.raises(UserError, match=words):
        vectors().read_given(tmp_path / "q.npy")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("q.csv", "x1,x2,x3\n1,,3\n1,two,3\n", "line 3 has 'two' in column 'x2', which is no number"),
        ("q.csv", "x1,x2\n1,\n", "lacks the column 'x3'"),
        ("q.csv", "x1,x2,x3,x4\n1,,3,4\n", "has the column 'x4'"),
        ("q.txt.zip", "x", "is no .npy, .npz, Parquet or CSV file by its name"),
        ("q.npy", "x", "cannot be read as NumPy's"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        vectors().read_given(tmp_path / name)
