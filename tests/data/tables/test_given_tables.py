"""Tables of which some entries are known: files, frames, answers to the byte, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from advect.core.errors import UserError
from advect.data import Table
from advect.data.tables.modality import Tables
from advect.data.tables.raw_csv import content, read_raw

HEADER = "id,wage,when,city,ok,same,label"
CITIES = ["Bonn", "Köln, am Rhein", 'the "city"']


def frame(n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    days, months = rng.integers(1, 29, n), rng.integers(1, 13, n)
    return pd.DataFrame(
        {
            "id": rng.integers(0, 50, n),
            "wage": [f"{value:,.2f}" for value in rng.uniform(100, 9000, n)],
            "when": [f"{day:02d}.{month:02d}.2020" for day, month in zip(days, months, strict=True)],
            "city": rng.choice(CITIES, n),
            "ok": rng.choice([True, False], n),
            "same": 7,
            "label": rng.choice(["u", "v"], n),
        }
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    file = tmp_path_factory.mktemp("table") / "t.csv"
    frame().to_csv(file, index=False)
    found = Table(file, conditions=("label",)).modality
    assert isinstance(found, Tables)
    return found


def question(folder: Path, text: str) -> Path:
    (folder / "q.csv").write_bytes(text.encode())
    return folder / "q.csv"


def test_known_fields_stay_to_the_byte_and_empty_ones_become_rows_that_could_be(
    tables: Tables, tmp_path: Path
) -> None:
    rows = ['"Bonn",,3,01.02.2020,True,7,u', ',"1,234.50",,,False,,v', '"Köln, am Rhein",17.00,4,NA,,7,v']
    file = question(tmp_path, "\r\n".join(["city,wage,id,when,ok,same,label", *rows, ""]))
    given = tables.read_given(file)
    assert given.values.isnan().tolist() == [
        [False, True, False, False, False, False, False],
        [True, False, True, True, True, True, False],
        [False, False, True, False, False, False, True],
    ]
    assert given.conditions == {"label": ["u", "v", "v"]}
    z = torch.randn(6, *tables.spec.shape, generator=torch.Generator().manual_seed(0))
    told = {"label": torch.tensor([0, 0, 1, 1, 1, 1])}
    files = tables.write_given(tables.transform.inverse(z), told, given, 2, tmp_path)
    assert [path.name for path in files] == ["draw-1.csv", "draw-2.csv"]
    drawn = []
    for path in files:
        assert path.read_bytes().startswith(f"{HEADER}\r\n".encode())
        found, first = read_raw(path), read_raw(file)
        for name in found.names:
            place, old = found.names.index(name), first.names.index(name)
            for new, was in zip(found.rows, first.rows, strict=True):
                assert content(was[old]) in ("", "NA") or new[place] == was[old]
        back = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert set(back["city"]) <= set(CITIES)
        assert set(back["ok"]) <= {"True", "False"}
        assert back["same"].tolist() == ["7", "7", "7"]
        assert bool(back["id"].str.fullmatch(r"\d+").all())
        assert bool(back["wage"].str.fullmatch(r"(\d,)?\d{1,3}\.\d\d").all())
        assert bool(back["when"].str.fullmatch(r"\d\d\.\d\d\.2020").all())
        drawn.append(back["id"][1])
    assert drawn[0] != drawn[1]


def test_types_of_parquet_come_back_with_what_was_known_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = pd.DataFrame(
        {
            "real": rng.normal(size=200),
            "short": rng.normal(size=200).astype(np.float32),
            "count": rng.integers(0, 9, 200).astype(np.int16),
            "when": pd.date_range("2020-01-01", periods=200, freq="7h", tz="Europe/Oslo"),
            "kind": pd.Categorical(rng.choice(["a", "b"], 200), ["b", "a", "never"]),
            "told": rng.normal(size=200),
        }
    )
    data.to_parquet(tmp_path / "t.parquet")
    modality = Table(tmp_path / "t.parquet", conditions=("told",)).modality
    asked = data.iloc[:20].copy()
    lost = rng.random((20, 5)) < 0.4
    for i, name in enumerate(data.columns[:5]):
        asked[name] = asked[name].mask(lost[:, i])
    asked[asked.columns[::-1]].to_parquet(tmp_path / "q.parquet")
    given = modality.read_given(tmp_path / "q.parquet")
    assert torch.equal(modality.given_rows(given).isnan(), torch.from_numpy(lost))
    x = modality.transform.inverse(torch.randn(20, *modality.spec.shape))
    [file] = modality.write_given(x, {"told": torch.zeros(20, 1)}, given, 1, tmp_path)
    back = pd.read_parquet(file)
    assert list(back.columns) == list(data.columns)
    assert not back.isna().any(axis=None)
    pd.testing.assert_series_equal(back["told"], data["told"].iloc[:20])
    for i, name in enumerate(data.columns[:5]):
        assert back[name].dtype == data[name].dtype
        assert back[name][~lost[:, i]].tolist() == asked[name][~lost[:, i]].tolist()


def test_frames_and_dicts_are_questions(tables: Tables) -> None:
    x = tables.given_rows({"id": 3, "city": "Bonn"})
    assert x.tolist()[0][:1] + x.tolist()[0][3:4] == [3.0, 0.0]
    assert x.isnan().sum() == 4
    part = frame().drop(columns=["label"]).iloc[:4].astype(object).replace({"city": {"Bonn": None}})
    part["wage"], part["when"] = np.nan, pd.Timestamp("2020-02-03")
    rows = tables.given_rows(part)
    assert torch.equal(tables.given(rows).isnan()[:, 1], torch.ones(4, dtype=torch.bool))
    assert rows[:, 0].tolist() == part["id"].tolist()
    assert rows[:, 3].isnan().tolist() == part["city"].isna().tolist()
    with pytest.raises(UserError, match="given has the column 'town', which the data have not"):
        tables.given_rows({"town": "Bonn"})
    with pytest.raises(
        UserError, match="given has 'Bon' in row 0 of column 'city', which the data have not; did you mean 'Bonn'"
    ):
        tables.given_rows({"city": "Bon"})


BAD = [
    ("1,2.00,,Bon,True,7,u", r"q.csv line 2 has 'Bon' in column 'city', which the data have not; did you mean 'Bonn'"),
    ("1,2.00,,Bonn,True,8,u", "line 2 has '8' in column 'same', and the data have 7 alone"),
    ("1,2.00,31.02.2020,,True,7,u", "line 2 has '31.02.2020' in column 'when', no time as the data write it"),
    ("1,2.00,01.02.1020,,True,7,u", "'01.02.1020' in column 'when', and the data lie in 02.01.2020 to 28.12.2020"),
    ("1.5,2.00,,Bonn,True,7,u", "'1.5' in column 'id', and the data have whole numbers; round it"),
    ("99999,2.00,,Bonn,True,7,u", "'99999' in column 'id', and the data lie in 0 to 49"),
    ("1,x,,Bonn,True,7,u", "'x' in column 'wage', no number as the data write it, such as"),
    ("1,1.234,,Bonn,True,7,u\n1,2,,Bonn,True,7", "line 3 has 6 fields, the header 7"),
    ('"1\n",2.00,,Bonn,True,7,u\n1,x,,Bonn,True,7,u', "line 2 has '1.n' in column 'id', no number"),
    ("1,2.00,,Bonn,yes,7,u", "'yes' in column 'ok', which the data have not; choose from False, True"),
    ("1,2.00,,Bonn,True,7,", "has nothing in row 0 of column 'label', a condition; fill it in"),
    ("1,2.00,,Bonn,True,7,z", "'z' in column 'label', which the data have not"),
    ("1,2.00,01.02.2020,Bonn,True,7,u", "asks for nothing: no entry is empty"),
    (",,,,,,u\n,,,,,,v", "knows nothing: all of its entries are empty"),
    ("", "has no rows"),
]


@pytest.mark.parametrize(("rows", "words"), BAD)
def test_what_is_no_question_is_one_sentence(tables: Tables, tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tables.read_given(question(tmp_path, f"{HEADER}\n{rows}\n" if rows else f"{HEADER}\n"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace("wage,", ""), "lacks the column 'wage'; add it"),
        (f"{HEADER},more", "has the column 'more', which the data have not"),
        (HEADER.replace("city", "cities"), "has the column 'cities', which the data have not; did you mean 'city'"),
    ],
)
def test_files_of_other_columns_are_refused(tables: Tables, tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tables.read_given(question(tmp_path, f"{header}\n{',' * header.count(',')}\n"))


def test_numbers_a_little_outside_the_data_are_known_as_they_are(tables: Tables, tmp_path: Path) -> None:
    given = tables.read_given(question(tmp_path, f"{HEADER}\n60,,,Bonn,,7,u\n"))
    assert tables.given_rows(given)[0, 0] == 60
    assert given.values[0, 0] > tables.transform.forward(torch.tensor([[49.0, 0, 0, 0, 0, 7]]).double())[0, 0]


def test_values_in_table_units_are_checked(tables: Tables) -> None:
    x = tables.given_rows({"id": 3, "city": "Bonn"})
    x[0, 3] = 5
    with pytest.raises(UserError, match="given has 5 in row 0 of column 'city', and there are categories 0 to 2"):
        tables.given(x)
    with pytest.raises(UserError, match="given knows nothing"):
        tables.given(torch.full((2, 6), torch.nan))


def test_a_question_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text("a,b,a\n1,,2\n")
    with pytest.raises(UserError, match="names the column 'a' twice"):
        read_raw(tmp_path / "asked.csv")
