"""Tables that cannot be used, and what is said of them."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from advect.core.errors import UserError  # noqa: E402
from advect.data import Table, read_table, write_table  # noqa: E402

GOOD = pd.DataFrame({"a": np.arange(6.0), "b": [1, 2, 3, 1, 2, 3], "c": list("xyxyxy")})


def refused(data, **arguments) -> str:
    with pytest.raises(UserError) as error:
        Table(data, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("frame", "arguments", "words"),
    [
        (GOOD.assign(d=np.nan), {}, "column 'd' has no values; leave it out with drop=('d',)"),
        (GOOD.assign(d=[0, 1, np.inf, 2, -np.inf, 3]), {}, "column 'd' has 2 infinite values, the first in row 2"),
        (GOOD.assign(d=[f"id{i}" for i in range(6)]), {}, "column 'd' has another text in each of its 6 rows"),
        (GOOD.assign(d=[1, "x", 2, "y", 3, "z"]), {}, "column 'd' holds int and str"),
        (GOOD.assign(d=[[1]] * 6), {}, "column 'd' has the type list"),
        (GOOD.assign(d=1j), {}, "column 'd' has the type complex128"),
        (GOOD.assign(d=[0, 2**60] * 3), {}, "column 'd' has whole numbers beyond 2^53"),
        (GOOD.set_axis(["a", "a", "c"], axis=1), {}, "column 'a' twice"),
        (GOOD.rename(columns={"a": 0}), {}, "column 0 has a name that is not text"),
        (GOOD.iloc[:0], {}, "the table is empty, its shape is (0, 3)"),
        (GOOD[["b"]], {"conditions": ("b",)}, "no column that varies"),
        (pd.DataFrame({"a": [1, 1]}), {}, "no column that varies, besides conditions (columns: 'a')"),
        (GOOD, {"conditions": ("cc",)}, "conditions has 'cc', which is no column"),
        (GOOD, {"conditions": "c"}, "conditions must be several names, got the text 'c'; give ('c',)"),
        (GOOD, {"drop": ("d",)}, "drop has 'd', which is no column"),
        (GOOD, {"categorical": ("aa",)}, "categorical has 'aa', which is no column"),
        (GOOD, {"continuous_conditions": ("c",)}, "continuous_conditions has 'c'"),
        (GOOD, {"scaling": "quantiles"}, "did you mean 'quantile'?"),
        (GOOD, {"held_out": 1.0}, "held_out must be at least 0 and below 1, got 1.0"),
        (GOOD.rename(columns={"c": "length"}), {"conditions": ("length",)}, "cannot be called 'length'"),
        ([[1, 2]], {}, "got list"),
    ],
)
def test_bad_frames(frame, arguments, words):
    assert words in refused(frame, **arguments)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"a,b\n", "the table has the column 'a' and no row"),
        ("t.csv", b"a,b\n1,2\n3\n", "line 3 has 1 fields, the header 2"),
        ("t.csv", b"a;b\n1;2\n3;4;5\n", "line 3 has 3 fields, the header 2 (separator ';')"),
        ("t.csv", b"a,b,a\n1,2,3\n", "names the column 'a' twice"),
        ("t.csv", b"a\n\xff\xfe\n", "not a readable CSV file in UTF-8"),
        ("t.csv.gz", b"a,b\n1,2\n", "not a readable CSV file"),
        ("t.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("t.xlsx", b"PK", "neither CSV nor Parquet"),
        ("t.csv", b"a,b\n1,\n2,\n", "column 'b' has no values"),
        ("t.csv", b"a,b,\n1,x,\n2,x,\n", "leave it out with drop=('Unnamed: 2',), --drop 'Unnamed: 2'"),
        ("t.csv", b"0.5,1\n0.2,2\n", "begins with a row of numbers (0.5,1)"),
        ("t.csv", b"5,3,3\n1,2,0\n", "begins with a row of numbers (5,3,3)"),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refused(tmp_path / name)


def test_a_missing_file_and_a_place_that_cannot_be_written(tmp_path):
    assert "does not exist" in refused(tmp_path / "no.csv")
    with pytest.raises(UserError, match=r"end the name in \.csv or \.parquet"):
        write_table(tmp_path / "t.json", GOOD)
    with pytest.raises(UserError, match="folder"):
        write_table(tmp_path / "no" / "t.csv", GOOD)


def test_an_empty_line_is_no_row_and_a_constant_column_is_no_dimension(tmp_path):
    (tmp_path / "t.csv").write_text('a,b,k\n1,"x\ny",5\n\n2,z,5\n1,z,5\n')
    source = Table(tmp_path / "t.csv", held_out=0)
    assert (len(source.train), source.spec.shape) == (3, (2,))


def test_nothing_of_this_needs_pandas_before_it_is_used():
    code = "import sys, advect.data; sys.exit('pandas' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("old, new", [("float64", "floet64"), ('"columns"', '"columnz"'), ('"pandas_type"', '"x"')])
def test_notes_of_pandas_that_are_damaged_are_one_sentence_or_ignored(tmp_path, old, new):
    table = pa.Table.from_pandas(pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]}))
    notes = {b"pandas": table.schema.metadata[b"pandas"].replace(old.encode(), new.encode())}
    parquet.write_table(table.replace_schema_metadata(notes), tmp_path / "t.parquet")
    try:
        assert read_table(tmp_path / "t.parquet")["a"].tolist() == [1.5, 2.5]
    except UserError as error:
        assert "is not a readable Parquet file" in str(error)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["2024-01-06", "27.01.2024"], ("2024-01-06", "27.01.2024")),
        (["13/01/2024", "01/13/2024"], ("13/01/2024", "01/13/2024")),
        (["03/04/2024", "13/04/2024", "04/13/2024"], ("13/04/2024", "04/13/2024")),
        (["2024-01-06", "2024-01-07 10:00"], ("2024-01-06", "2024-01-07 10:00")),
        (["2024-01-06T10:00:00", "2024-01-07T10:00:00Z"], ("2024-01-06T10:00:00", "2024-01-07T10:00:00Z")),
    ],
)
def test_dates_in_two_formats_are_asked_about(words, shown, tmp_path) -> None:
    frame = pd.DataFrame({"day": words * 12, "a": np.arange(len(words) * 12.0)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for data in (frame, tmp_path / "t.csv"):
        told = refused(data)
        assert "column 'day' has dates in several formats, such as" in told and "--categorical day" in told
        assert all(repr(word) in told for word in shown)
        assert Table(data, categorical=("day",)).spec.shape


def test_words_like_dates_that_are_none_stay_words(tmp_path) -> None:
    for words in (["1.2.3", "10.20.30"], ["2024-02-30", "30.02.2024"], ["2024-01", "2024-01-06"]):
        frame = pd.DataFrame({"v": words * 12, "a": np.arange(24.0)})
        frame.to_csv(tmp_path / "t.csv", index=False)
        Table(tmp_path / "t.csv")
        Table(frame)


def test_tables_of_a_row_or_a_header_alone_are_named(tmp_path) -> None:
    assert "table has one row" in refused(GOOD.iloc[:1])
    (tmp_path / "t.csv").write_text("a,b\n")
    assert "has the column 'a' and no row" in refused(tmp_path / "t.csv")


def test_a_column_of_keys_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"row": np.arange(60), "client_id": rng.permutation(60) * 7, "a": rng.permutation(60) * 7})
    with caplog.at_level(logging.INFO):
        Table(frame)
    told = [line for line in caplog.messages if "as a key has" in line]
    assert [line.split("'")[1] for line in told] == ["row", "client_id"] and "--drop row" in told[0]
