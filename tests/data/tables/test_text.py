from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq  # noqa: E402

from advect.core.errors import UserError  # noqa: E402
from advect.data import Table, frame_of, write_table  # noqa: E402
from advect.data.tables.files import read_table  # noqa: E402

N = 120
RNG = np.random.default_rng(0)
CLOCK = [(pd.Timestamp("2024-03-29", tz="Europe/Berlin") + pd.Timedelta(hours=i)).isoformat() for i in range(N)]


def sent_back(path, folder, **options):
    """The table, and a file of its rows after the way to model units and back."""
    table = Table(path, held_out=0.0, **options)
    facts = json.loads(json.dumps(table.metadata))
    batch = table.train.fetch(np.arange(len(table.train)))
    frame = frame_of(table.transform.inverse(batch.x1), batch.cond, facts, text=facts["suffix"] == ".csv")
    out = folder / ("out" + facts["suffix"])
    write_table(out, frame, index=facts["index"], separator=facts["separator"])
    return table, out


@pytest.mark.parametrize(
    ("words", "kind", "separator"),
    [
        (["01067", "04109", "10115"], "categories", ","),
        ([f"2024-{m:02}" for m in range(1, 13)], "categories", ","),
        (["NA", "DE", "None"], "categories", ","),
        (["1", "NA", "22"], "number", ","),
        (["1,5", "22,7", "0,3"], "number", ";"),
        (["1.234,50", "22,70", "0,30"], "number", ";"),
        (["1,234.50", "22.70", "0.30"], "number", ","),
        (["2.50", "12.00", "0.30"], "number", ","),
        (["true", "false"], "categories", ","),
        (CLOCK, "number", ","),
        (["9999-12-31", "2020-02-29"], "number", ","),
        (["31.12.2020", "01.02.2020"], "number", ","),
        (["12/31/2020", "1/2/2020"], "number", ","),
        (["2020-01-01 10:00:00", "2020-01-01 10:00:00.250000"], "number", ","),
        (["12345678901234567890", "12345678901234567891"], "categories", ","),
    ],
)
def test_text_comes_back_as_it_came(tmp_path, words, kind, separator):
    path = tmp_path / "a.csv"
    rows = {"x": RNG.integers(0, 99, N), "word": [words[i % len(words)] for i in range(N)]}
    pd.DataFrame(rows).to_csv(path, index=False, sep=separator)
    table, out = sent_back(path, tmp_path)
    assert table.transform.columns[1].kind == kind
    assert out.read_text() == path.read_text()


def test_the_type_does_not_depend_on_where_the_odd_value_is(tmp_path):
    words = ["1"] * 300_000 + ["x"]
    (tmp_path / "a.csv").write_text("n\n" + "\n".join(words) + "\n")
    assert Table(tmp_path / "a.csv").transform.columns[0].names == ("1", "x")


@pytest.mark.parametrize(
    ("words", "told", "options", "kind"),
    [
        (["1,234", "2,500"], "part thousands", {"decimal": ","}, "number"),
        (["03/04/2020", "05/06/2020"], "day may come first", {"date_order": "dmy"}, "number"),
    ],
)
def test_what_can_be_read_in_two_ways_is_asked(tmp_path, words, told, options, kind):
    pd.DataFrame({"x": RNG.integers(0, 9, N), "w": words * (N // 2)}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=told):
        Table(tmp_path / "a.csv")
    table, out = sent_back(tmp_path / "a.csv", tmp_path, **options)
    assert table.transform.columns[1].kind == kind
    assert out.read_text() == (tmp_path / "a.csv").read_text()


def test_flags_overrule_the_guess(tmp_path):
    pd.DataFrame({"x": ["007", "012"] * 60, "y": ["a", "-9"] * 60}).to_csv(tmp_path / "a.csv", index=False)
    x, y = Table(tmp_path / "a.csv", numeric=("x",), missing=("-9",)).transform.columns
    assert (x.kind, x.high, y.names, y.missing) == ("number", 12, ("a",), True)
    assert Table(tmp_path / "a.csv").transform.columns[0].names == ("007", "012")


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("x", ["007", "12"], "text (digits after a 0 or a plus, which codes have)"),
        ("zip", ["107", "12"], "text (codes, by its name)"),
        ("x", ["12345678901234567890", "1"], "text (whole numbers of over 64 bits)"),
        ("x", ["1", "2", "x"], "text (words, as 'x' among numbers is none)"),
        ("x", ["a", "b"], "text (words)"),
        ("x", ["1", "2,5"], "number (numbers with a decimal comma)"),
        ("x", ["1", "NA"], "number (whole numbers, 'NA' among them is a missing value)"),
    ],
)
def test_the_reason_of_a_type_is_told(tmp_path, name, words, why):
    pd.DataFrame({name: words * 9, "y": "a"}).to_csv(tmp_path / "a.csv", index=False, sep=";")
    assert read_table(tmp_path / "a.csv").attrs["why"] == {name: why, "y": "text (words)"}


@pytest.mark.parametrize("option", [{}, {"categorical": ("w",)}, {"conditions": ("w",)}])
@pytest.mark.parametrize("words", [["a", "b", "?"], ["1", "22", "?"], ["true", "True", "?"], ["True", "False", "?"]])
def test_words_that_are_missing_values_come_back(tmp_path, words, option):
    pd.DataFrame({"x": RNG.integers(0, 99, N), "w": words * (N // 3)}).to_csv(tmp_path / "a.csv", index=False)
    table, out = sent_back(tmp_path / "a.csv", tmp_path, missing=("?", "n/a"), **option)
    assert out.read_text() == (tmp_path / "a.csv").read_text()
    assert (table.transform.columns[-1] if "conditions" not in option else table._told[0]).missing


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["9223372036854775808", "1"], "holds 9223372036854775808, beyond the whole numbers of 64 bits"),
        (["-9223372036854775808", "1"], "holds -9223372036854775808, beyond"),
        (["1", "x"], "holds 'x'; name it to --missing"),
        (["1.5", "1,5"], "written in several ways, such as '1.5'"),
        (["2020-01-01", "2020-01-02"], "holds '2020-01-01'"),
        (["True", "False"], "holds 'True'"),
        (["1.2.3", "4"], "holds '1.2.3'"),
    ],
)
def test_a_column_called_numeric_that_is_not_is_one_sentence(tmp_path, words, told):
    pd.DataFrame({"x": words * (N // 2)}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=f"^numeric has 'x', wh.*{told}"):
        Table(tmp_path / "a.csv", numeric=("x",))


def test_every_type_of_a_parquet_file_comes_back(tmp_path):
    days = [dt.date(2020, 1, 1) + dt.timedelta(days=i) for i in range(N)]
    source = pa.table(
        {
            "date": days,
            "decimal": pa.array([Decimal(i) / 100 for i in range(N)], pa.decimal128(10, 2)),
            "time": pa.array([dt.time(i % 24, i % 60) for i in range(N)], pa.time64("us")),
            "duration": pa.array([3 * i for i in range(N)], pa.duration("s")),
            "gaps": pa.array([None if i % 7 == 0 else i for i in range(N)], pa.int32()),
            "flag": pa.array([None if i % 7 == 0 else i % 2 == 0 for i in range(N)]),
            "code": [f"20{i % 4:02}" for i in range(N)],
            "iso": [str(day) for day in days],
            "stamp": pa.array([1_700_000_000 * 10**9 + 1001 * i for i in range(N)], pa.timestamp("ns", "UTC")),
            "big": pa.array([2**60 + i for i in range(N)], pa.int64()),
        }
    )
    pq.write_table(source, tmp_path / "a.parquet")
    _, out = sent_back(tmp_path / "a.parquet", tmp_path)
    assert pq.read_table(out).to_pydict() == source.to_pydict()
    assert pq.read_schema(out).types == source.schema.types


def test_arrow_backed_frames_and_an_index_come_back(tmp_path):
    index = pd.date_range("2024-01-01", periods=N, freq="h", name="time")
    frame = pd.DataFrame({"load": RNG.integers(0, 99, N), "kind": ["a", "b"] * (N // 2)}, index=index)
    frame.convert_dtypes(dtype_backend="pyarrow").to_parquet(tmp_path / "a.parquet")
    table, out = sent_back(tmp_path / "a.parquet", tmp_path)
    assert len(table.transform.columns) == 3
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(tmp_path / "a.parquet"), check_freq=False)


@pytest.mark.parametrize("value", [dt.timedelta(minutes=5), Decimal("0.25"), dt.date(2020, 1, 1)])
def test_python_objects_come_back(value):
    values = [value * i if not isinstance(value, dt.date) else value + dt.timedelta(days=i) for i in range(N)]
    frame = pd.DataFrame({"x": RNG.normal(size=N), "v": pd.Series(values, dtype=object)})
    table = Table(frame, held_out=0.0)
    back = frame_of(table.transform.inverse(table.train.fetch(np.arange(N)).x1), None, table.metadata)
    assert back.v.tolist() == values
