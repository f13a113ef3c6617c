from __future__ import annotations

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")

from advect.core.errors import UserError  # noqa: E402
from advect.data import Table, TableTransform, frame_of, transform_from_config  # noqa: E402
from advect.data.tables.coded import LARGEST, Atoms, Code, CodedCategories, Levels  # noqa: E402
from advect.data.tables.columns import Categories, Column, Number, column_from_config  # noqa: E402
from advect.data.tables.given import series_units  # noqa: E402
from advect.data.tables.packed import Packed  # noqa: E402

RNG = np.random.default_rng(0)
N = 6000


def mixed() -> pd.DataFrame:
    """Columns of every kind that is coded, with values missing in some."""
    rain = np.where(RNG.random(N) < 0.6, 0.0, RNG.lognormal(size=N).round(2))
    frame = pd.DataFrame(
        {
            "age": RNG.integers(17, 90, N),
            "rain": np.where(RNG.random(N) < 0.1, 99.9, rain),
            "price": (RNG.integers(1, 60, N) / 4).round(2),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(RNG.integers(0, 30, N), "D"),
            "word": RNG.choice(["a", "b", "c"], N).astype(object),
            "sure": RNG.random(N) < 0.3,
            "two": RNG.choice([0.5, 7.0], N),
            "real": RNG.normal(size=N),
            "code": [f"z{i:05}" for i in RNG.integers(0, 3000, N)],
        }
    )
    for name in ("age", "rain", "word", "sure", "day"):
        frame[name] = frame[name].astype({"age": "Int64", "sure": "boolean"}.get(name, frame[name].dtype))
        frame.loc[RNG.random(N) < 0.1, name] = None
    return frame


FRAME = mixed()


def opened(frame: pd.DataFrame, **options) -> tuple[Table, TableTransform]:
    table = Table(frame, **options)
    assert isinstance(table.transform, TableTransform)
    return table, table.transform


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, LARGEST, LARGEST + 1, 1024, 1025, 10_000, 40_000])
def test_a_code_comes_back_and_categories_in_their_thousands_cost_little(count):
    code, every = Code(count), torch.arange(count)
    z = code.encode(every)
    assert torch.equal(code.decode(z), every)
    assert set(z.flatten().tolist()) <= {-1.0, 1.0}
    assert len({tuple(row) for row in z.tolist()}) == count
    assert code.width == sum(size for _, size in code.places()) and (code.width <= 128)
    assert code.width <= 66 or count <= LARGEST or count > 32**3


def test_digits_that_no_category_has_become_the_nearest_that_has_them():
    code = Code(1025)
    z = torch.randn(500, code.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, every = code.decode(z), code.encode(torch.arange(1025))
    assert torch.equal(found, (z[:, None] - every).square().sum(2).argmin(1))


def test_each_kind_of_column_is_coded_as_suits_it():
    _, transform = opened(FRAME)
    kinds = {column.name: type(column) for column in transform.columns}
    names, numbers = {"word", "sure", "code"}, {"age", "price", "day", "two"}
    assert kinds == {
        **dict.fromkeys(names, CodedCategories),
        **dict.fromkeys(numbers, Levels),
        "rain": Atoms,
        "real": Number,
    }
    widths = dict(zip(kinds, transform.widths, strict=True))
    assert widths["word"] == 4 and widths["sure"] == 3  # missing is a category
    assert widths["two"] == 1 and widths["rain"] == 4 + 1  # others, 0, 99.9 and missing; and the other values
    assert widths["code"] <= 48 and widths["age"] == FRAME["age"].nunique() + 1
    rain = transform.columns[1]
    assert isinstance(rain, Atoms) and rain.atoms == (0.0, 99.9)


@pytest.mark.parametrize("holes", [False, True])
def test_every_kind_comes_back_in_its_type_and_to_the_last_digit(holes):
    table, transform = opened(FRAME, holes=holes, held_out=0.0)
    x = table.train.fetch(np.arange(N)).x1
    back = frame_of(transform.inverse(x), None, table.metadata)
    real = back.pop("real")
    pd.testing.assert_frame_equal(back, FRAME.drop(columns="real"))
    assert np.abs(real - FRAME["real"]).max() < 0.1 and (real - FRAME["real"]).abs().median() < 1e-3
    assert bool(x.isnan().any()) == holes


def test_the_codes_are_one_hot_and_cover_all_but_numbers():
    table, transform = opened(FRAME)
    x = table.train.fetch(np.arange(512)).x1
    covered = torch.zeros(x.shape[1], dtype=torch.int64)
    for start, size in transform.code_places:
        covered[start : start + size] += 1
        block = x[:, start : start + size]
        assert bool((block.abs() == 1).all())
        assert size == 1 or bool(((block > 0).sum(1) == 1).all())
    assert covered.max() == 1 and int((covered == 0).sum()) == 2  # real, and rain that does not recur


def test_a_card_holds_all_of_it():
    _, transform = opened(FRAME)
    again = transform_from_config(transform.to_config())
    assert again == transform
    x = torch.randn(64, sum(transform.widths), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.inverse(x).nan_to_num(-7), transform.inverse(x).nan_to_num(-7))


def test_cards_of_columns_as_bits_still_read_as_they_were_written():
    words = [f"w{i}" for i in range(60)]
    old = {
        "kind": "categories",
        "name": "w",
        "dtype": "object",
        "missing": True,
        "form": {},
        "arrow": "",
        "names": words,
    }
    old |= {"arrow": "", "categories": [], "ordered": False, "category_dtype": ""}
    column = column_from_config(old)
    assert type(column) is Categories and column.width == 7 and column.codes == ()
    x = torch.tensor([0.0, 59.0, torch.nan], dtype=torch.float64)
    assert torch.equal(column.inverse(column.forward(x)).nan_to_num(-1), x.nan_to_num(-1))


def test_numbers_of_few_rows_or_of_a_density_stay_numbers():
    few = pd.DataFrame({"x": RNG.integers(0, 30, 200), "y": RNG.normal(size=200)})
    assert [type(column) for column in opened(few)[1].columns] == [Number, Number]
    many = pd.DataFrame({"x": RNG.integers(0, 30, N), "y": RNG.normal(size=N)})
    assert [type(column) for column in opened(many)[1].columns] == [Levels, Number]
    assert [type(column) for column in opened(many, scaling="standard")[1].columns] == [Number, Number]
    assert np.isfinite(opened(many, scaling="standard")[1].log_det(2))
    with pytest.raises(UserError, match="scaling='standard'"):
        opened(many)[1].log_det(2)


def test_distances_take_numbers_as_one_element():
    table, _ = opened(FRAME[["age", "rain", "real"]].assign(age=FRAME["age"].fillna(40)))
    rows = torch.tensor([[20.0, 0.0, 0.0], [21.0, 0.0, 0.0], [80.0, 0.0, 0.0]], dtype=torch.float64)
    x = table.modality.feature_space(rows)
    assert x.shape[1] == 4  # and whether the rain is missing
    assert (x[0] - x[1]).norm() < (x[0] - x[2]).norm() / 10


def test_a_value_between_levels_is_the_nearest_and_its_mean_has_a_derivative():
    _, transform = opened(pd.DataFrame({"x": RNG.choice([0, 1, 10], N), "y": RNG.normal(size=N)}))
    x = torch.tensor([[0.4, 0.0], [4.0, 0.0], [6.0, 0.0], [99.0, 0.0]], dtype=torch.float64)
    assert transform.inverse(transform.forward(x))[:, 0].tolist() == [0, 1, 10, 10]
    z = torch.zeros(1, 4, requires_grad=True)
    mean = transform.unrounded(z)[0, 0]
    assert mean.item() == pytest.approx(11 / 3)
    (slope,) = torch.autograd.grad(mean, z)
    assert slope[0, 2] > 0 > slope[0, 0]


def test_damaged_levels_and_atoms_are_refused():
    config = {column["name"]: column for column in opened(FRAME)[1].to_config()["columns"]}
    for name, entry, value, words in (
        ("age", "levels", [3.0, 2.0], "do not rise"),
        ("age", "levels", [3.0, 4.0], "other ends"),
        ("rain", "atoms", [], "do not rise"),
        ("rain", "others", {"kind": "nothing"}, "unknown scaling"),
    ):
        with pytest.raises(UserError, match=words):
            column_from_config({**config[name], entry: value})


@pytest.mark.parametrize("holes", [False, True])
def test_rows_are_held_in_a_number_a_column(holes):
    table, transform = opened(FRAME, holes=holes, held_out=0.0)
    x = table.train.fetch(np.arange(N)).x1
    own = transform.forward(torch.from_numpy(np.stack([_units(FRAME[c.name], c) for c in transform.columns], 1)))
    assert torch.equal(x.nan_to_num(-7), own.nan_to_num(-7))
    packed = Packed(x.shape[1], transform.code_places)
    assert packed.width == 9 + 2 + 1  # three digits of the code of 3,000 names, and rain that does not recur
    assert torch.equal(packed.forward(torch.from_numpy(packed.pack(x.numpy()))).nan_to_num(-7), x.nan_to_num(-7))


def _units(series: pd.Series, column: Column) -> np.ndarray:
    return series_units("the frame", series, column)


def test_the_shares_of_the_codes_are_those_of_the_rows_to_train_on():
    table, transform = opened(FRAME)
    x = table.train.fetch(np.arange(len(table.train))).x1
    codes = table.spec.codes
    assert tuple((code.start, code.size) for code in codes) == transform.code_places
    for code in codes:
        shares = (x[:, code.start : code.start + code.size] > 0).double().mean(0)
        assert torch.allclose(torch.tensor(code.shares, dtype=torch.float64), shares, atol=2e-3)
