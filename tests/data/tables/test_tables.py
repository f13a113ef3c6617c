from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

from scipy.stats import kstest  # noqa: E402
from sklearn.datasets import load_diabetes, load_iris, load_wine  # noqa: E402

from advect.core.types import Category, Quantity  # noqa: E402
from advect.data import Table, frame_of, read_table, transform_from_config, write_table  # noqa: E402
from advect.data.tables.columns import Categories  # noqa: E402
from advect.data.tables.scaling import QuantileScaling  # noqa: E402

N = 240


def mixed() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "real": rng.normal(3, 20, N).round(2),
            "zeros": np.where(rng.random(N) < 0.5, 0, rng.exponential(size=N)),
            "whole": rng.integers(-3, 900, N),
            "dozen": rng.integers(0, 12, N).astype(np.int8),
            "flag": rng.random(N) < 0.3,
            "word": rng.choice(["ä", "b,c", "d"], N),
            "day": pd.to_datetime("2020-01-01") + pd.to_timedelta(rng.integers(0, 4000, N), unit="D"),
            "hour": pd.date_range("2021-03-01 10:00", periods=N, freq="h", tz="Europe/Berlin"),
            "gaps": pd.array(rng.integers(1, 100, N), dtype="Int64"),
            "size": pd.Categorical(rng.choice(["lo", "hi"], N), categories=["lo", "mid", "hi"], ordered=True),
            "rank": pd.Categorical(rng.choice([30, 10, 20], N), categories=[30, 10, 20]),
            "same": 7,
            "single": rng.normal(size=N).astype(np.float32).round(1),
        }
    )
    frame.loc[3:20, "word"] = None
    frame.loc[5:60, "gaps"] = pd.NA
    frame.loc[0:5, "real"] = np.nan
    frame.loc[7, "day"] = pd.NaT
    return frame


def both_ways(source: Table) -> pd.DataFrame:
    """The training rows, to model units and back, from what JSON keeps of the source."""
    facts = json.loads(json.dumps(source.metadata))
    transform = transform_from_config(facts["transform"])
    assert transform == source.transform
    batch = source.train.fetch(np.arange(len(source.train)))
    assert batch.x1.dtype == torch.float32
    return frame_of(transform.inverse(batch.x1), batch.cond, facts)


@pytest.mark.parametrize("scaling", ["quantile", "standard"])
@pytest.mark.parametrize(
    "told", [(), ("word", "whole", "day"), ("flag", "size", "dozen", "gaps", "real")], ids=["all", "some", "many"]
)
def test_a_mixed_table_comes_back_as_it_was(scaling, told):
    frame = mixed()
    found = both_ways(Table(frame, scaling=scaling, conditions=told, held_out=0))
    exact = [column for column in frame if column != "zeros"]
    pd.testing.assert_frame_equal(found[exact], frame[exact])
    pd.testing.assert_frame_equal(found, frame, check_exact=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("told", [False, True])
def test_every_type_comes_back(told):
    frame = pd.DataFrame(
        {
            "text": pd.array(["x", "y", "y", None] * 9, dtype="string"),
            "maybe": pd.array([True, None, False, True] * 9, dtype="boolean"),
            "object": pd.Series([True, False, None, True] * 9, dtype=object),
            "gaps": pd.Categorical([None, "u", "u", "v"] * 9, categories=["w", "v", "u"]),
            "short": pd.array([1, 2, None, 300] * 9, dtype="Int16"),
            "nullable": pd.array([1.5, None, 2.5, 90.0] * 9, dtype="Float64"),
            "byte": np.arange(36, dtype=np.uint8) + 200,
            "second": pd.Series(pd.date_range("1969-12-31 23:59:50", periods=36, freq="s")).astype("datetime64[s]"),
            "absent": [5.0, None, 5.0, 5.0] * 9,
            "tiny": np.linspace(-1, 1, 36) * 1e-9,
        }
    )
    source = Table(frame, conditions=tuple(frame)[:-1] if told else (), held_out=0)
    found = both_ways(source)
    pd.testing.assert_frame_equal(found, frame, check_exact=False, rtol=1e-5, atol=1e-13)
    unconditional = frame_of(source.transform.inverse(torch.zeros(3, *source.spec.shape)), None, source.metadata)
    assert unconditional["byte"].isna().all() == told


@pytest.mark.parametrize("scaling", ["quantile", "standard"])
@pytest.mark.parametrize("load", [load_iris, load_wine, load_diabetes])
def test_real_tables_come_back(load, scaling):
    frame = load(as_frame=True).frame
    found = both_ways(Table(frame, scaling=scaling, conditions=("target",), held_out=0))
    pd.testing.assert_frame_equal(found, frame, check_exact=False, rtol=1e-5, atol=1e-6)


def test_quantile_scaling_makes_marginals_standard_normal():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"heavy": rng.standard_cauchy(5000), "skew": rng.exponential(size=5000)})
    source = Table(frame, held_out=0.2)
    train, rest = (split.fetch(np.arange(len(split))).x1.double() for split in (source.train, source.held_out))
    for i in range(2):
        assert kstest(train[:, i].numpy(), "norm").statistic < 2e-3  # about one in KNOTS
        assert kstest(rest[:, i].numpy(), "norm").pvalue > 1e-3
    small = QuantileScaling.fit(rng.normal(size=99) ** 3)
    z = small.forward(torch.tensor(small.values, dtype=torch.float64))
    assert kstest(z.numpy(), "norm").statistic == pytest.approx(0.5 / 99)


def test_a_value_that_is_half_of_the_data_owns_half_of_the_normal():
    x = np.concatenate([np.zeros(500), np.linspace(1, 2, 500)])
    scaling = QuantileScaling.fit(x)
    assert scaling.forward(torch.zeros(1)).item() == pytest.approx(torch.special.ndtri(torch.tensor(0.25)).item())
    z = torch.linspace(-3.2, -0.003, 50, dtype=torch.float64)
    assert scaling.inverse(z).abs().max() == 0
    assert scaling.inverse(torch.tensor([0.02])).item() > 1


def test_quantile_scaling_rises_and_inverts_beyond_its_ends():
    rng = np.random.default_rng(2)
    scaling = QuantileScaling.fit(np.round(rng.exponential(size=3000), 2))
    x = torch.linspace(-5, 30, 4001, dtype=torch.float64)
    z = scaling.forward(x)
    assert (z.diff() > 0).all()
    assert torch.allclose(scaling.inverse(z), x, atol=1e-9)


@pytest.mark.parametrize(("n", "width"), [(1, 0), (2, 1), (3, 3), (50, 50), (51, 6), (64, 6), (65, 7), (300, 9)])
def test_many_categories_are_written_as_bits(n, width):
    column = Categories(name="c", dtype="int64", names=list(range(n)))
    codes = torch.arange(n, dtype=torch.float64)
    z = column.forward(codes)
    assert column.width == width
    assert z.shape == (n, width)
    assert set(z.unique().tolist()) <= {-1.0, 1.0}
    noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(0)) * 0.9
    assert torch.equal(column.inverse(z - z * noise), codes)
    anything = torch.randn(400, width, generator=torch.Generator().manual_seed(1))
    assert column.inverse(anything).max() < n


def test_what_a_network_makes_up_is_a_row_that_could_be():
    frame = mixed()
    source = Table(frame, held_out=0.2)
    z = torch.randn(500, *source.spec.shape, generator=torch.Generator().manual_seed(0)) * 3
    made = frame_of(source.transform.inverse(z), None, source.metadata)
    for name in ("whole", "dozen", "gaps", "day", "hour", "zeros"):
        assert made[name].min() >= frame[name].min()
        assert made[name].max() <= frame[name].max()
    assert made["whole"].dtype == np.int64
    assert made["gaps"].dtype == "Int64"
    assert set(made["size"]) == {"lo", "hi"}
    assert set(made["word"].dropna()) == {"ä", "b,c", "d"}
    assert (made["same"] == 7).all()
    assert not made["zeros"].isna().any()
    assert 0 < made["real"].isna().mean() < 1
    assert list(made) == list(frame)


def test_columns_become_conditions_by_their_type():
    frame = mixed()
    source = Table(frame, conditions=("real", "dozen", "word"), continuous_conditions=("gaps",), held_out=0)
    real, dozen, word, gaps = (source.spec.conditions[c] for c in ("real", "dozen", "word", "gaps"))
    assert isinstance(real, Quantity)
    assert isinstance(gaps, Quantity)
    assert isinstance(word, Category)
    assert dozen.names == tuple(str(i) for i in range(12))
    assert word.names == ("b,c", "d", "ä")
    assert sum(word.frequencies) == pytest.approx(1)
    assert real.mean[0] == pytest.approx(frame["real"].mean())
    assert real.std[0] == pytest.approx(frame["real"].std(ddof=0))
    assert {v for (v,) in real.examples} <= set(frame["real"].dropna())
    cond = source.train.fetch(np.arange(N)).cond
    assert cond["word"].dtype == torch.int64
    assert ((cond["word"] == -1).numpy() == frame["word"].isna()).all()
    assert cond["gaps"].shape == (N, 1)
    assert (cond["gaps"].isnan()[:, 0].numpy() == frame["gaps"].isna()).all()
    assert cond["real"].nanmean().item() == pytest.approx(0, abs=1e-5)


def test_equal_rows_stay_on_one_side():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=50), "b": np.where(rng.random(50) < 0.5, np.nan, 1.0)})
    frame = pd.concat([frame] * 3, ignore_index=True)
    source = Table(frame, held_out=0.3)
    sides = [set(map(tuple, s.fetch(np.arange(len(s))).x1.tolist())) for s in (source.train, source.held_out)]
    assert not sides[0] & sides[1]
    assert len(source.train) + len(source.held_out) == 150
    assert len(source.held_out) == 45


def test_csv_and_parquet_are_the_same_data(tmp_path):
    frame = mixed()
    for name in ("t.csv", "t.csv.gz", "t.tsv", "t.parquet"):
        write_table(tmp_path / name, frame)
    (tmp_path / "semi.csv").write_text(frame.to_csv(index=False, sep=";"), encoding="utf-8")
    plain = frame.drop(columns=["size", "rank", "hour"])  # whose types CSV does not keep
    drop = ("size", "rank", "hour")
    sources = [
        Table(tmp_path / name, drop=drop, conditions=("word",))
        for name in ("t.csv", "t.csv.gz", "t.tsv", "semi.csv", "t.parquet")
    ]
    sources.append(Table(plain, conditions=("word",)))
    assert len({source.fingerprint for source in sources}) == 1
    batches = [source.train.fetch(np.arange(9)) for source in sources]
    assert all(torch.equal(batch.x1, batches[0].x1) for batch in batches)
    assert all(torch.equal(batch.cond["word"], batches[0].cond["word"]) for batch in batches)
    kept = frame.drop(columns="rank")  # Arrow reads categories of numbers as numbers
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet")[list(kept)], kept)
    assert Table(plain).fingerprint != Table(plain, seed=1).fingerprint != Table(plain.iloc[1:]).fingerprint


def test_a_column_without_a_name_and_years_as_names_come_back(tmp_path):
    for header in (",2019,2020", "2019,2020,Unnamed: 2"):
        (tmp_path / "t.csv").write_text(header + "\n" + "".join(f"{i},{i % 7},{i % 3}\n" for i in range(40)))
        table = Table(tmp_path / "t.csv", held_out=0.0)
        rows = table.transform.inverse(table.train.fetch(np.arange(40)).x1)
        table.modality.write_data(rows, {}, tmp_path, 0)
        assert (tmp_path / "samples.csv").read_text() == (tmp_path / "t.csv").read_text()


def test_names_with_zeros_in_front_are_kept_where_they_are_categories(tmp_path):
    (tmp_path / "t.csv").write_text("code,x\n007,1.5\n010,2\n007,3\n")
    found = both_ways(Table(tmp_path / "t.csv", categorical=("code",), held_out=0))
    assert found["code"].tolist() == ["007", "010", "007"]


def test_log_det_is_that_of_the_jacobian_or_an_error_that_says_why():
    source = Table(load_iris(as_frame=True).data, scaling="standard", held_out=0)
    x = torch.tensor([5.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: source.transform.forward(x[None])[0], x)
    assert source.transform.log_det(4) == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"'sepal length .* scaled by quantiles"):
        Table(load_iris(as_frame=True).data).transform.log_det(4)
    with pytest.raises(ValueError, match="'target' has categories"):
        Table(load_iris(as_frame=True).frame, scaling="standard", categorical=("target",)).transform.log_det(7)
