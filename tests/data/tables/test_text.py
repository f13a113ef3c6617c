from __future__ import annotations

import csv
import datetime as dt
import json
import random
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
        (["2E5", "3E7", "101"], "categories", ","),
        (["1e3", "2e3"], "categories", ","),
        (["1.50E+05", "2.25E-07", "-3.00E+00"], "number", ","),
        (["1e+05", "2.5e-07", "1.25e+100"], "number", ","),
        (["1.0e3", "2.5e10", "-1.25e-4"], "number", ","),
        (["1,5e3", "2,5e10"], "number", ";"),
        (["1e-05", "0.5", "1200"], "number", ","),
        (["+1.50", "-2.25"], "number", ","),
        ([".5", "-.25", "1.75"], "number", ","),
        (["1.5", "22"], "number", " "),
        (["a", "b c"], "categories", " "),
    ],
)
def test_text_comes_back_as_it_came(tmp_path, words, kind, separator):
    path = tmp_path / "a.csv"
    rows = {"x": RNG.integers(0, 99, N), "word": [words[i % len(words)] for i in range(N)]}
    pd.DataFrame(rows).to_csv(path, index=False, sep=separator)
    table, out = sent_back(path, tmp_path)
    assert table.transform.columns[1].plain.kind == kind
    assert out.read_text() == path.read_text()


def test_the_type_does_not_depend_on_where_the_odd_value_is(tmp_path):
    words = ["1"] * 300_000 + ["x"]
    (tmp_path / "a.csv").write_text("n\n" + "\n".join(words) + "\n")
    assert Table(tmp_path / "a.csv", categorical=("n",)).transform.columns[0].names == ("1", "x")
    with pytest.raises(UserError, match=r"'n' has numbers but for 1 of 300,001 values, 'x'"):
        Table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["1.5"] * 20 + ["NA", "?", "n.d."], "numbers but for 2 of 22 values, '.', 'n.d.'.*--missing NA '[?]' n.d."),
        (["1,234"] * 20 + ["x"], "numbers but for 1 of 21"),
        (["2020-01-01", "2021-05-06"] * 10 + ["open"], "dates but for 1 of 21 values, 'open'"),
        (["1"] * 18 + ["x", "y"], ""),
        (["01067"] * 20 + ["x"], ""),
        (["2E5"] * 20 + ["x"], ""),
    ],
)
def test_a_few_words_among_numbers_or_dates_are_asked(tmp_path, words, told):
    pd.DataFrame({"x": RNG.integers(0, 99, len(words)), "w": words}).to_csv(tmp_path / "a.csv", index=False)
    if not told:
        assert Table(tmp_path / "a.csv").transform.columns[1].plain.kind == "categories"
        return
    with pytest.raises(UserError, match=told):
        Table(tmp_path / "a.csv")
    odd = [w for w in words if not w[0].isdigit()]
    assert Table(tmp_path / "a.csv", missing=odd, decimal=".", drop=("x",)).transform.columns[0].missing
    assert Table(tmp_path / "a.csv", categorical=("w",)).transform.columns[1].plain.kind == "categories"
    assert len(Table(tmp_path / "a.csv", drop=("w",)).transform.columns) == 1


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("x y\n1 2\n3 4\n5 6\n", ["x", "y"]),
        ("# x y\n1.0e+00 2.5e+00\n3.0e+00 4.5e+00\n5.0e+00 6.5e+00\n", ["x", "y"]),
        ("  x     y\n  1    20\n 30     4\n\n5 6\n", ["x", "y"]),
        ("x\ty\n1\t2\n3\t4\n5\t6\n", ["x", "y"]),
        ("x|y\n1|2\n3|4\n5|6\n", ["x", "y"]),
        ('"x a" "y"\n1 2\n3 4\n5 6\n', ["x a", "y"]),
        ('"x, cm";y\n1,5;2\n3,5;4\n5,5;6\n', ["x, cm", "y"]),
        ("name\nMiller 5\nSmith 6\nMiller 5\n", ["name"]),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".dat"])
def test_fields_are_separated_as_the_rows_say(tmp_path, text, columns, suffix):
    (tmp_path / f"a{suffix}").write_text(text)
    frame = read_table(tmp_path / f"a{suffix}")
    assert list(frame.columns) == columns and len(frame) == 3
    assert all(frame[c].dtype.kind in "if" for c in columns) or columns == ["name"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1.0 2.0\n3.0 4.0\n", "begins with a row of numbers (1.0 2.0)"),
        ("x y\n1 2 3\n", "line 2 has 3 fields, the header 2"),
        ("x y\n1 2\n3\n", "line 3 has 1 fields, the header 2 (separator ' ')"),
    ],
)
def test_blanks_that_do_not_fit_are_one_sentence(tmp_path, text, told):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError) as error:
        Table(tmp_path / "a.txt")
    assert told in str(error.value)


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
    assert table.transform.columns[1].plain.kind == kind
    assert out.read_text() == (tmp_path / "a.csv").read_text()


def test_flags_overrule_the_guess(tmp_path):
    pd.DataFrame({"x": ["007", "012"] * 60, "y": ["a", "-9"] * 60}).to_csv(tmp_path / "a.csv", index=False)
    x, y = Table(tmp_path / "a.csv", numeric=("x",), missing=("-9",)).transform.columns
    assert (x.plain.kind, x.high, y.names, y.missing) == ("number", 12, ("a",), True)
    assert Table(tmp_path / "a.csv").transform.columns[0].names == ("007", "012")


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("x", ["007", "12"], "text (digits after a 0 or a plus, which codes have)"),
        ("zip", ["107", "12"], "text (codes, by its name)"),
        ("x", ["12345678901234567890", "1"], "text (whole numbers of over 64 bits)"),
        ("x", ["1", "2", "x"], "text (words, as 'x' among numbers is none; missing with --missing x)"),
        ("x", ["a", "b"], "text (words)"),
        (
            "x",
            ["1e3", "5"],
            "text (digits with a bare exponent, as '1e3', which codes have; numbers with --numeric x)",
        ),
        ("x", ["1e+03", "5"], "number (numbers, some of them with exponents)"),
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


@pytest.mark.parametrize("tail", ['3,"cut', '3,"cut\n', '3,"cut\n4,x\n'])
def test_a_file_cut_within_quotes_is_refused(tmp_path, tail):
    (tmp_path / "a.csv").write_text('n,word\n1,one\n2,"t""wo"\n' + tail)
    with pytest.raises(UserError, match="ends within a field in quotes, as if it were cut off"):
        read_table(tmp_path / "a.csv")


def test_a_quote_within_a_word_is_part_of_it(tmp_path):
    (tmp_path / "a.csv").write_text('n,size\n1,5"\n2,7in\n')
    assert read_table(tmp_path / "a.csv")["size"].tolist() == ['5"', "7in"]


def test_wide_files_are_read_as_narrow_ones(tmp_path):
    """Past a thousand columns, where fields are read by rows: numbers, dates, words, holes, quotes; and bad rows."""
    kinds = [["1.50", "-2.25", ""], ["2024-01-31", "2024-02-29", "2023-12-01"], ["a", 'b "c", d', ""], ["7", "8", "9"]]
    names = [f"c{i}" for i in range(1030)]
    rows = [[kinds[i % 4][row] for i in range(1030)] for row in range(3)]
    for name, width in (("wide.csv", 1030), ("narrow.csv", 4)):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([names[:width], *(row[:width] for row in rows)])
    wide, narrow = read_table(tmp_path / "wide.csv"), read_table(tmp_path / "narrow.csv")
    for i in (*range(4), *range(254, 260), *range(1026, 1030)):
        pd.testing.assert_series_equal(wide[f"c{i}"], narrow[f"c{i % 4}"], check_names=False)
        assert wide.attrs["forms"].get(f"c{i}") == narrow.attrs["forms"].get(f"c{i % 4}")
    (tmp_path / "ragged.csv").write_text((tmp_path / "wide.csv").read_text() + "1,2\n")
    with pytest.raises(UserError, match="line 5 has 2 fields, the header 1030"):
        Table(tmp_path / "ragged.csv")


def test_fields_are_read_as_the_csv_module_does(tmp_path):
    """Quotes, line breaks and separators in fields, empty lines, both line ends, and fields longer than a block."""
    rng, alphabet = random.Random(0), ['"', ",", "\n", "\r\n", "a", "7", ".", " ", "é", "x" * 70_000]
    rows = [[str(i), "w" + "".join(rng.choices(alphabet, k=rng.randrange(6)))] for i in range(300)]
    for ends in ("\n", "\r\n"):
        with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator=ends).writerows([["n", "word"], *rows[:150], [], *rows[150:]])
        found = read_table(tmp_path / "a.csv", text=["word"])
        assert found["n"].tolist() == list(range(300))
        assert found["word"].tolist() == [word for _, word in rows]
