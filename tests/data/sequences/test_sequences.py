from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import LENGTH, Category, Length, Quantity
from advect.data import Sequences, SequenceTransform, sequences_of, steps_of, transform_from_config

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(2, 8, 60)
LENGTHS[0] = 8
RAGGED = [RNG.normal([5, -100], [0.1, 30], (length, 2)) for length in LENGTHS]


def everything(source):
    return source.train.fetch(np.arange(len(source.train)))


def test_a_ragged_list_comes_back_as_it_was():
    source = Sequences(RAGGED, held_out=0)
    batch = everything(source)
    assert (source.spec.shape, source.spec.modality) == ((8, 2), "sequence")
    assert batch.cond[LENGTH].dtype == torch.int64
    assert batch.cond[LENGTH].tolist() == LENGTHS.tolist()
    transform = transform_from_config(json.loads(json.dumps(source.transform.to_config())))
    assert transform == source.transform
    for found, expected in zip(sequences_of(transform.inverse(batch.x1), batch.cond), RAGGED, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_is_zero_both_ways_and_real_steps_alone_are_standardised():
    source = Sequences(RAGGED, held_out=0)
    batch = everything(source)
    real = torch.arange(8) < batch.cond[LENGTH][:, None]
    assert (batch.x1[~real] == 0).all()
    steps = batch.x1[real].double()
    assert torch.allclose(steps.mean(0), torch.zeros(2, dtype=torch.double), atol=1e-5)
    assert torch.allclose(steps.std(0, unbiased=False), torch.ones(2, dtype=torch.double), atol=1e-5)
    data = source.transform.inverse(batch.x1)
    assert data[real][:, 1].mean().item() == pytest.approx(np.concatenate(RAGGED)[:, 1].mean(), rel=1e-4)


def test_the_frequencies_of_lengths_are_those_of_the_training_part():
    source = Sequences(RAGGED, held_out=0.25)
    spec = source.spec.conditions[LENGTH]
    assert isinstance(spec, Length)
    assert (len(source.train), len(source.held_out), len(spec.frequencies)) == (45, 15, 8)
    counts = torch.bincount(everything(source).cond[LENGTH], minlength=9)[1:]
    np.testing.assert_allclose(spec.frequencies, counts / 45, rtol=1e-6)
    assert sum(spec.frequencies) == pytest.approx(1)


def test_sequences_of_one_length_have_no_length(tmp_path):
    x = RNG.normal(size=(20, 5, 3))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", values=x, kind=np.arange(20) % 3, age=np.arange(20) / 7)
    source = Sequences(tmp_path / "x.npy")
    assert source.spec.conditions == {}
    assert everything(source).cond is None
    assert source.fingerprint == Sequences(x).fingerprint != Sequences(x, seed=1).fingerprint
    told = Sequences(tmp_path / "x.npz", conditions=("kind", "age"))
    kind, age = told.spec.conditions["kind"], told.spec.conditions["age"]
    assert isinstance(kind, Category)
    assert isinstance(age, Quantity)
    assert kind.names == ("0", "1", "2")
    assert everything(told).cond["age"].shape == (18, 1)


def test_archives_say_the_lengths_in_either_way(tmp_path):
    padded = np.full((60, 8, 2), 99.0)
    for row, x in zip(padded, RAGGED, strict=True):
        row[: len(x)] = x
    np.savez(tmp_path / "padded.npz", values=padded, lengths=LENGTHS)
    np.savez(tmp_path / "flat.npz", values=np.concatenate(RAGGED), lengths=LENGTHS)
    prints = {Sequences(data).fingerprint for data in (tmp_path / "padded.npz", tmp_path / "flat.npz", RAGGED)}
    prints.add(Sequences(padded, lengths=LENGTHS).fingerprint)
    assert len(prints) == 1


def test_long_sequences_are_cut():
    x = [np.arange(float(n))[:, None] for n in (7, 3, 4)]
    truncated = Sequences(x, max_length=4, held_out=0)
    windows = Sequences(x, max_length=3, long="window", labels={"c": np.array(["a", "b", "c"])}, held_out=0)

    def values(source):
        batch = everything(source)
        found = sequences_of(source.transform.inverse(batch.x1), batch.cond)
        return [[round(float(v), 3) for v in row[:, 0]] for row in found]

    assert values(truncated) == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]
    assert values(windows) == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2], [0, 1, 2], [3]]
    assert everything(windows).cond["c"].tolist() == [0, 0, 0, 1, 2, 2]


def test_equal_sequences_and_windows_of_one_stay_on_one_side():
    x = RNG.normal(size=(10, 6, 1))
    source = Sequences(np.concatenate([x, x]), held_out=0.3)
    sides = [set(s.fetch(np.arange(len(s))).x1[:, 0, 0].tolist()) for s in (source.train, source.held_out)]
    assert not sides[0] & sides[1]
    assert len(source.held_out) == 6
    owners = np.repeat(np.arange(10), 6).reshape(10, 6, 1)
    windows = Sequences(owners, max_length=2, long="window", held_out=0.3)
    sides = [
        set(windows.transform.inverse(s.fetch(np.arange(len(s))).x1)[:, 0, 0].round().tolist())
        for s in (windows.train, windows.held_out)
    ]
    assert not sides[0] & sides[1]
    assert len(windows.held_out) == 9


def test_log_det_is_that_of_the_jacobian():
    scale = SequenceTransform.fit([RNG.normal([1, 2], [0.5, 3], (20, 2))], np.zeros(1, int))
    x = torch.randn(4, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: scale.forward(x[None])[0], x).reshape(8, 8).double()
    assert scale.log_det(8) == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-5)
    with pytest.raises(UserError, match="no common log_det"):
        Sequences(RAGGED).transform.log_det(16)


def long_table(pd):
    rows = [
        {"who": f"p{i}", "t": step, "u": u, "group": "ab"[i % 2], "v": v, "age": 20.5 + i}
        for i, x in enumerate(RAGGED)
        for step, (u, v) in enumerate(x)
    ]
    return pd.DataFrame(rows)


def test_a_table_of_steps_comes_back(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = long_table(pd)
    shuffled = frame.sample(frac=1, random_state=0)
    starts = frame.drop_duplicates("who").index
    mixed = pd.concat([frame.loc[starts], shuffled.drop(starts)])  # sequences begin in the same order
    frame.to_csv(tmp_path / "t.csv", index=False)
    mixed.to_parquet(tmp_path / "t.parquet", index=False)
    arguments = {"id_column": "who", "order_column": "t", "conditions": ("group", "age"), "held_out": 0}
    source = Sequences(tmp_path / "t.csv", **arguments)
    assert source.fingerprint == Sequences(tmp_path / "t.parquet", **arguments).fingerprint
    assert source.fingerprint == Sequences(mixed, **arguments).fingerprint
    batch = everything(source)
    assert torch.equal(batch.x1, everything(Sequences(RAGGED, held_out=0)).x1)
    facts = json.loads(json.dumps(source.metadata))
    found = steps_of(source.transform.inverse(batch.x1), batch.cond, facts)
    assert list(found) == list(frame)
    assert found["who"].tolist() == [f"p{60 + int(who[1:])}" for who in frame["who"]]
    assert found["group"].tolist() == frame["group"].tolist()
    rest = ["t", "age", "u", "v"]
    pd.testing.assert_frame_equal(found[rest], frame[rest], check_dtype=False, check_exact=False, rtol=1e-5, atol=1e-5)


def visits(pd, starts=("2024-01-30", "2024-01-30")):
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "who": name,
                    "date": pd.date_range(start, periods=3).strftime("%Y-%m-%d"),
                    "pulse": [61, 62, 63],
                    "ward": [True, False, True],
                    "grams": [0.25, 0.5, 0.75],
                }
            )
            for name, start in zip("ab", starts, strict=True)
        ],
        ignore_index=True,
    )


def test_channels_and_the_order_of_a_table_come_back_in_their_own_type(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = visits(pd)
    frame.to_csv(tmp_path / "visits.csv", index=False)
    data = Sequences(tmp_path / "visits.csv", id_column="who", order_column="date", held_out=0)
    batch = everything(data)
    back = steps_of(data.transform.inverse(batch.x1), batch.cond, json.loads(json.dumps(data.metadata)))
    assert back.drop(columns="who").to_csv(index=False) == frame.drop(columns="who").to_csv(index=False)


@pytest.mark.parametrize(("dates", "width"), [("D", 5), ("B", 6)])
def test_an_order_that_differs_between_sequences_is_learned(tmp_path, dates, width):
    """Days in a row need their first, and its place in the week; working days also the gaps."""
    pd = pytest.importorskip("pandas")
    days = pd.date_range("2024-01-30", periods=60, freq=dates).strftime("%Y-%m-%d")
    rows = [
        {"who": f"p-{i:02}", "date": days[6 * i + j], "u": round(RNG.normal(), 2), "kind": "abc"[(i + j) % 3]}
        for i in range(10)
        for j in range(6)
    ]
    frame = pd.DataFrame(rows).assign(n=RNG.integers(0, 40, 60))
    frame.to_csv(tmp_path / "f.csv", index=False)
    data = Sequences(tmp_path / "f.csv", id_column="who", order_column="date", value_columns=("u", "n"), held_out=0)
    assert data.spec.shape == (6, width)
    z = everything(data).x1
    back = steps_of(data.transform.inverse(z), None, json.loads(json.dumps(data.metadata)))
    assert back[["date", "u", "n"]].to_csv(index=False) == frame[["date", "u", "n"]].to_csv(index=False)
    assert back["who"].iloc[0] == "p-10" and back["who"].iloc[-1] == "p-19"
    noisy = data.transform.inverse(z + 0.3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)))
    found = steps_of(noisy, None, data.metadata)
    gaps = pd.to_datetime(found["date"]).groupby(found["who"], sort=False).diff().dropna().dt.days
    assert set(gaps) == ({1} if dates == "D" else {1, 3}) and found["n"].between(0, 39).all()
    with pytest.raises(UserError, match="differ in their times 'date'"):
        data.transform.log_det(18)


def test_a_start_moves_to_its_place_in_the_year_and_the_day():
    """Starts of 20 years to the second: noise of a tenth of their deviation (7 months) keeps season and hour."""
    pd = pytest.importorskip("pandas")
    starts = pd.Timestamp("2000-01-01 06:00:00") + pd.to_timedelta(RNG.integers(0, 7300, 200), "D")
    times = [start + pd.Timedelta(hours=hour) for start in starts for hour in range(3)]
    frame = pd.DataFrame({"id": np.repeat(range(200), 3), "time": times, "u": RNG.normal(size=600)})
    data = Sequences(frame, id_column="id", order_column="time", held_out=0)
    z = everything(data).x1
    assert [round(p) for p in data.transform.periods] == [round(365.2425 * 24), 168, 24][: len(z[0, 0]) // 2]
    back = steps_of(data.transform.inverse(z), None, data.metadata)
    assert (back["time"].to_numpy() == frame["time"].to_numpy()).all()
    moved = z.clone()
    moved[..., 1] += 0.1
    found = steps_of(data.transform.inverse(moved), None, data.metadata)["time"]
    days = (found.dt.dayofyear.to_numpy() - frame["time"].dt.dayofyear.to_numpy() + 183) % 365 - 183
    assert (found.dt.year.to_numpy() != frame["time"].dt.year.to_numpy()).mean() > 0.3
    assert np.abs(days).max() <= 4 and (found.dt.hour.to_numpy() == frame["time"].dt.hour.to_numpy()).all()


def test_zeros_decimals_and_types_come_back_from_noise():
    """Of rain that is 0 in 56% of the steps, noise that moves the rest leaves the share of zeros."""
    rain = np.where(RNG.random((200, 30)) < 0.56, 0, RNG.gamma(1, 5, (200, 30)) + 0.1).round(1)
    data = Sequences(np.stack([rain, RNG.normal(20, 5, rain.shape).round(1)], -1).astype(np.float32), held_out=0)
    assert [column.scaling.kind for column in data.transform.columns] == ["quantile", "standard"]
    x = data.transform.inverse(torch.randn(500, 30, 2, generator=torch.Generator().manual_seed(0)))
    zeros = float((x[..., 0] == 0).double().mean())
    assert zeros == pytest.approx(0.56, abs=0.02) and float(x[..., 0].min()) == 0 and x.max() <= max(rain.max(), 45)
    assert torch.equal(x, x.round(decimals=1))
    whole = Sequences(RNG.integers(-3, 4, (20, 5, 2)).astype(np.int16), held_out=0)
    batch = everything(whole)
    assert torch.equal(whole.transform.inverse(batch.x1 + 0.01), whole.transform.inverse(batch.x1))
    assert whole.metadata["columns"][0]["dtype"] == "int16"


def test_words_that_change_are_a_channel(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"id": np.repeat(range(8), 4), "sky": list("abca" * 8), "t": [0, 1, 2, 3] * 8})
    data = Sequences(frame, id_column="id", order_column="t", held_out=0)
    assert data.spec.shape == (4, 3)
    back = steps_of(data.transform.inverse(everything(data).x1), None, data.metadata)
    assert back["sky"].tolist() == frame["sky"].tolist() and back["id"].tolist() == (frame["id"] + 8).tolist()


def test_an_order_of_other_dates_is_not_sorted_as_text(tmp_path):
    """As text 1/10/2024 comes before 1/9/2024."""
    pd = pytest.importorskip("pandas")
    days = ["9/30/2024", "10/1/2024", "10/13/2024"]
    frame = visits(pd).assign(date=[*days, *days])
    frame.iloc[::-1].to_csv(tmp_path / "visits.csv", index=False)
    data = Sequences(tmp_path / "visits.csv", id_column="who", order_column="date", held_out=0)
    x = data.transform.inverse(everything(data).x1)
    assert torch.allclose(x[:, :, 0], torch.tensor([61.0, 62, 63]).to(x).expand(2, 3), atol=1e-4)
    frame.assign(date=["soon", "later", "last"] * 2).to_csv(tmp_path / "words.csv", index=False)
    with pytest.raises(UserError, match="date"):
        Sequences(tmp_path / "words.csv", id_column="who", order_column="date", value_columns=("pulse",))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("order", ["date", None])
def test_steps_are_written_in_the_format_types_and_order_of_the_table(tmp_path, order, suffix):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    columns = {
        "pulse": np.array([61, 62, 63] * 2, np.uint8),
        "who": [0, 0, 0, 1, 1, 1],
        "date": pd.to_datetime(["2024-01-01", "2024-02-01", "2024-03-01"] * 2),
        "grams": np.arange(6, dtype=np.float32) / 4,
    }
    frame, path = pd.DataFrame(columns).drop(columns=[] if order else "date"), tmp_path / f"a{suffix}"
    frame.to_parquet(path, index=False) if suffix == ".parquet" else frame.to_csv(path, index=False, sep=";")
    data = Sequences(path, id_column="who", order_column=order, held_out=0)
    x = data.transform.inverse(everything(data).x1)
    files = data.modality.write_data(x, {}, tmp_path, -2)
    assert [f.name for f in files] == [f"samples{suffix}"]
    if suffix == ".csv":
        assert files[0].read_text() == path.read_text()
    else:
        pd.testing.assert_frame_equal(pd.read_parquet(files[0]), frame)


@pytest.mark.parametrize("kind", ["bool", "true", "uint8", "uint32", "int64", ">i2", "float16", "float64"])
def test_arrays_are_written_in_their_type_and_range(tmp_path, kind):
    x = np.arange(60).reshape(10, 3, 2) % 7 + 5
    x[..., 1] = 7
    x = x % 2 == 1 if kind == "bool" else x > -1 if kind == "true" else x.astype(kind)
    x[0, 0, 0] = 0
    np.savez(tmp_path / "a.npz", values=x, lengths=[1, 2, 3, 3, 3] * 2)
    data = Sequences(tmp_path / "a.npz", held_out=0)
    batch = everything(data)
    data.modality.write_data(data.transform.inverse(batch.x1 * 3), batch.cond, tmp_path, 0)
    found = np.load(tmp_path / "samples.npz")["values"]
    real = np.arange(3) < batch.cond[LENGTH].numpy()[:, None]
    assert found.dtype == x.dtype.newbyteorder("=")
    assert not found[~real].any() and (found[real][:, 1] == x[0, 0, 1]).all()
    assert found[real].min() >= x[real].min() and found[real].max() <= x[real].max()
    pd = pytest.importorskip("pandas")
    assert (pd.read_csv(tmp_path / "samples.csv")[["value_0", "value_1"]].to_numpy() == found[real]).all()


def test_times_that_are_plain_numbers_come_back():
    """They have no place in a year, a week or a day."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"who": np.repeat(range(6), 4), "t": np.repeat([0, 5, 3] * 2, 4) + [0, 1, 3, 4] * 6, "u": RNG.normal(size=24)}
    )
    data = Sequences(frame, id_column="who", order_column="t", held_out=0)
    back = data.transform.inverse(data.train.fetch(np.arange(6)).x1)
    assert np.array_equal(back[..., 1].numpy(), frame["t"].to_numpy().reshape(6, 4))


def test_whole_numbers_that_float64_would_round_are_refused():
    with pytest.raises(UserError, match=r"whole numbers beyond 2\^53 that float64 does not hold"):
        Sequences(np.full((3, 2, 1), 2**62 + 1) + np.arange(3)[:, None, None])


U = {"id_column": "who", "value_columns": ("u",)}


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (lambda f: f, {"order_column": "t"}, "id_column is not given"),
        (lambda f: f, {"id_column": "whom", "order_column": "t"}, "no column 'whom'; did you mean 'who'?"),
        (lambda f: f, {"id_column": "who", "order_column": "t"}, "column 'group' has values of"),
        (
            lambda f: f,
            {**U, "conditions": ("v",)},
            "column 'v' changes within a sequence",
        ),
        (
            lambda f: f.assign(u=np.nan),
            U,
            "column 'u' misses a value in row 0",
        ),
        (
            lambda f: f.assign(u=np.inf),
            U,
            "column 'u' is infinite in row 0",
        ),
        (
            lambda f: f.assign(who=None),
            U,
            "column 'who' misses a value in row 0",
        ),
        (lambda f: f, {"id_column": "who", "value_columns": "u"}, "got one text"),
        (lambda f: f, {**U, "labels": {"a": [1]}}, "labels are for arrays, and the sequences are a table"),
    ],
)
def test_bad_tables_of_steps(change, arguments, words):
    frame = change(long_table(pytest.importorskip("pandas")))
    with pytest.raises(UserError) as error:
        Sequences(frame, **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        ([], {}, "there are no sequences"),
        (np.zeros((3, 4)), {}, "got shape (3, 4); for one channel give x[..., None]"),
        ([np.zeros((3, 2)), np.zeros((3, 1))], {}, "sequence 1 has shape (3, 1), the first (3, 2)"),
        ([np.zeros((3, 2)), np.zeros((0, 2))], {}, "sequence 1 has shape (0, 2)"),
        ([np.zeros((2, 2)), np.full((2, 2), np.nan)], {}, "sequence 1 holds nan at step 0, channel 0"),
        (np.zeros((2, 3, 1)), {"lengths": [1, 4]}, "lengths must be 2 numbers of at most 3, got 2 up to 4"),
        (np.zeros((2, 3, 1)), {"lengths": [1, 0]}, "lengths must be >= 1, got 0 for sequence 1"),
        (np.zeros((6, 1)), {"lengths": [1, 4]}, "lengths sum to 5, but values has 6 steps"),
        (np.zeros((2, 3, 1)), {"labels": {"a": [1, 2, 3]}}, "conditions['a'] must be (2,)"),
        (np.zeros((2, 3, 1)), {"conditions": ("a",)}, "conditions must map names to arrays"),
        (np.zeros((2, 3, 1)), {"labels": {"length": [1, 2]}}, "cannot be called 'length'"),
        (np.zeros((2, 3, 1)), {"max_length": 0}, "max_length must be at least 1 and at most 2,147,483,647, got 0"),
        (np.zeros((2, 3, 1)), {"long": "cut"}, "long must be 'truncate' or 'window', got 'cut'"),
        (np.zeros((2, 3, 1)), {"id_column": "a"}, "id_column, order_column and value_columns are for tables"),
        (np.array([["a"]]), {}, "must hold real numbers"),
        ("missing.npz", {}, "cannot be read as NumPy"),
    ],
)
def test_bad_arrays(data, arguments, words):
    with pytest.raises(UserError) as error:
        Sequences(data, **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
