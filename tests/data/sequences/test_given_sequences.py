"""Sequences with unknown values: in training data, and as questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import LENGTH
from advect.data import Sequences
from advect.data.tables.files import read_table

NAN = float("nan")
RNG = np.random.default_rng(0)


def stored(source: Sequences) -> torch.Tensor:
    return source.train.fetch(np.arange(len(source.train))).x1


def test_holes_stay_unknown_and_scalings_are_those_of_present_values() -> None:
    x = RNG.normal([3, -50], [1, 20], (40, 6, 2))
    lost = RNG.random(x.shape) < 0.2
    lost[:, 0, 0] = False
    holed = np.where(lost, NAN, x)
    with pytest.raises(UserError, match=r"holds nan at step .*, or take NaN for unknown by holes=True \(--holes\)"):
        Sequences(holed)
    source = Sequences(holed, holes=True, held_out=0)
    z = stored(source)
    assert torch.equal(z.isnan(), torch.from_numpy(lost))
    present = [holed[..., c][~lost[..., c]] for c in range(2)]
    scalings = [column.scaling for column in source.transform.columns]
    assert [s.mean for s in scalings] == pytest.approx([p.mean() for p in present])
    assert [s.std for s in scalings] == pytest.approx([p.std() for p in present])
    back = source.transform.inverse(z)
    assert torch.allclose(back, torch.from_numpy(holed), atol=1e-4, equal_nan=True)
    assert source.holes is not None and source.holes.entries == lost.sum()


def test_holes_of_ragged_sequences_are_not_padding_even_at_the_end() -> None:
    x = [np.arange(float(n))[:, None] * [1, 2] + RNG.normal(size=(n, 2)) for n in (3, 5, 4, 5)]
    x[0][2] = NAN
    x[2][1, 1] = NAN
    source = Sequences(x, holes=True, held_out=0)
    batch = source.train.fetch(np.arange(4))
    assert batch.cond is not None and batch.cond[LENGTH].tolist() == [3, 5, 4, 5]
    for z, own in zip(batch.x1, x, strict=True):
        assert torch.equal(z[: len(own)].isnan(), torch.from_numpy(np.isnan(own)))
        assert (z[len(own) :] == 0).all()
    assert source.holes is not None
    assert source.holes.words() == "holes in 2 of 4 rows, 3 of 34 entries"  # padding is no entry
    x[0][:] = NAN
    with pytest.raises(UserError, match="has no value at all"):
        Sequences(x, holes=True, held_out=0)


def steps(days: int = 3, first: str = "2024-01-01"):
    """Hourly rows of two numbers and words, for each of several sensors with other starts."""
    pd = pytest.importorskip("pandas")
    rows = []
    for sensor in range(30):
        times = pd.date_range(first, periods=24 * days, freq="h") + pd.Timedelta(hours=7 * sensor)
        phase = 2 * np.pi * (times.hour.to_numpy() / 24)
        load = (10 + 5 * np.sin(phase) + RNG.normal(0, 0.1, len(times))).round(2)
        state = np.where(load > 12, "high", np.where(load > 8, "middle", "low"))
        n = RNG.poisson(5, len(times))
        rows.append(pd.DataFrame({"sensor": sensor, "time": times, "load": load, "state": state, "n": n}))
    return pd.concat(rows, ignore_index=True)


def test_an_entry_is_a_channel_of_a_step_and_the_start_is_of_the_first_time() -> None:
    source = Sequences(steps(), id_column="sensor", order_column="time", held_out=0)
    groups = source.modality.groups
    assert groups.shape == source.spec.shape == (72, 1 + 3 + 1 + 1 + 4)  # the gap is constant; places in week and day
    assert groups[5].tolist() == [20, 21, 21, 21, 22, 3, 3, 3, 3, 3]
    assert source.modality.entry_name(21) == "'state' at step 5"


def test_a_question_has_the_known_values_of_training_and_asks_for_whole_entries() -> None:
    source = Sequences(steps(), id_column="sensor", order_column="time", held_out=0)
    z = stored(source)[:3]
    x = source.transform.inverse(z)
    asked = x.clone()
    asked[0, 50:] = NAN  # a forecast: of the times too, which the start and the constant gap tell
    asked[1, 10:20, 1] = NAN
    asked[2, :, 3] = NAN
    given, groups = source.modality.given(asked), source.modality.groups
    assert torch.equal(given.isnan()[0], (groups >= 200) & (groups != 3))
    assert torch.equal(given.isnan()[1], (groups >= 40) & (groups < 80) & (groups % 4 == 1))
    assert torch.equal(given.isnan()[2], groups == 3)
    assert torch.equal(given.nan_to_num(0), torch.where(given.isnan(), 0, z))


def test_what_a_channel_cannot_be_is_named() -> None:
    source = Sequences(steps(), id_column="sensor", order_column="time", held_out=0)
    x = source.transform.inverse(stored(source)[:2])
    for step, column, value, words in (
        (3, 2, 4.5, "given has 4.5 in row 1, step 3 of 'n': the data have whole numbers"),
        (4, 1, 3.0, "given has 3 in row 1, step 4 of 'state': there are categories 0 to 2"),
        (4, 3, NAN, "given has times 'time' after unknown ones"),
        (4, 3, 900.0, "in row 1, step 3 of 'time': the data have"),
    ):
        wrong = x.clone()
        wrong[0, 60:] = NAN
        wrong[1, step, column] = value
        with pytest.raises(UserError, match=words):
            source.modality.given(wrong)


def test_windows_of_one_series_overlap_and_the_last_are_held_out() -> None:
    frame = steps(days=20).query("sensor == 0").drop(columns=["sensor", "state"])
    source = Sequences(frame, order_column="time", max_length=48, long="window", stride=6)
    windows = 1 + (480 - 48) // 6
    held = round(windows * 0.1)
    assert (len(source.held_out), len(source.train)) == (held, windows - held - 7)
    values = source.transform.inverse(stored(source))
    first = source.transform.inverse(source.held_out.fetch(np.arange(1)).x1)[0, 0, -1]
    assert values[-1, -1, -1] == first - 1  # hours: no step on both sides
    assert torch.equal(values[3, :, 0], torch.tensor(frame["load"].to_numpy()[18:66]))
    with pytest.raises(UserError, match=r"id_column is not given; .* windows of one series by --max-length"):
        Sequences(frame, order_column="time")
    with pytest.raises(UserError, match="stride is 49"):
        Sequences(frame, order_column="time", max_length=48, long="window", stride=49)


def written(frame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_answers_have_what_was_known_as_it_stood_and_the_rest_in_its_types(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    data = written(steps(), tmp_path / f"data{suffix}")
    source = Sequences(data, id_column="sensor", order_column="time", held_out=0)
    modality = source.modality
    frame = steps(days=2).query("sensor < 3").iloc[::-1].reset_index(drop=True)  # fewer steps, the last first
    whole = frame.copy()
    lost = RNG.random((len(frame), 3)) < 0.3
    frame["load"] = frame["load"].mask(lost[:, 0])
    frame["state"] = frame["state"].mask(lost[:, 1])
    frame["n"] = frame["n"].astype("Int64").mask(lost[:, 2])
    rows = modality.read_given(written(frame, tmp_path / f"asked{suffix}"))
    assert rows.values.shape == (3, 72, 10)
    values = modality.given_rows(rows)
    assert np.isnan(values[:, :48, :3].numpy()).sum() == lost.sum() and values[:, 48:].isnan().all()
    x = source.transform.inverse(stored(source)[:6])
    files = modality.write_given(x, {}, rows, 2, tmp_path)
    assert [f.name for f in files] == [f"draw-1{suffix}", f"draw-2{suffix}", "samples.png"]
    for k, file in enumerate(files[:2]):
        found = read_table(file)
        assert list(found.columns) == list(frame.columns) and (found.dtypes == read_table(data).dtypes).all()
        for c, name in enumerate(("load", "state", "n")):
            assert (found[name][~lost[:, c]] == whole[name][~lost[:, c]]).all()
        sensors = [sensor for sensor in (2, 1, 0)]
        for i, sensor in enumerate(sensors):
            own = found[found["sensor"] == sensor].sort_values("time")
            asked = lost[own.index, 0]
            assert np.array_equal(own["load"].to_numpy()[asked], x[2 * i + k, :48, 0].numpy()[asked])
    if suffix == ".csv":
        old, new = ((tmp_path / name).read_text().splitlines() for name in ("asked.csv", "draw-1.csv"))
        for before, after in zip(old, new, strict=True):
            assert all(a == b for a, b in zip(before.split(","), after.split(","), strict=True) if a)


def test_arrays_are_filled_in_place(tmp_path: Path) -> None:
    data = [RNG.normal(size=(n, 2)).astype(np.float32) for n in (5, 3, 4, 5)]
    source = Sequences(data, held_out=0)
    x = np.full((2, 4, 2), 0.5, np.float32)
    x[0, 1, 0] = x[1, 2] = np.nan
    np.savez(tmp_path / "asked.npz", values=x, lengths=np.array([3, 4]))
    rows = source.modality.read_given(tmp_path / "asked.npz")
    assert rows.conditions == {LENGTH: [3, 4]} and rows.values.shape == (2, 5, 2)
    drawn = torch.full((2, 5, 2), 9.0, dtype=torch.float64)
    files = source.modality.write_given(drawn, {LENGTH: torch.tensor([3, 4])}, rows, 1, tmp_path)
    with np.load(files[0]) as found:
        assert found["values"].dtype == np.float32 and found["lengths"].tolist() == [3, 4]
        assert np.array_equal(found["values"], np.where(np.isnan(x), np.float32(9), x))


def test_files_that_ask_for_nothing_or_have_more_steps_are_refused(tmp_path: Path) -> None:
    source = Sequences(steps(), id_column="sensor", order_column="time", held_out=0)
    for frame, words in (
        (steps(days=2).query("sensor < 2"), "asks for nothing"),
        (steps(days=4).query("sensor < 2"), "has 96 steps of sensor 0, and the flow was trained on 72"),
        (steps(days=2).assign(state="hihg"), "line 2 has 'hihg' in column 'state', .* did you mean 'high'"),
        (steps(days=2).assign(load=None, state=None, n=None), "knows nothing"),
        (steps(days=2).assign(time=lambda f: f["time"].mask(f.index == 7)), "misses the time 'time' in row 7"),
    ):
        with pytest.raises(UserError, match=words):
            source.modality.read_given(written(frame, tmp_path / "asked.csv"))


def test_the_words_of_a_question_are_read_as_those_of_the_data(tmp_path: Path) -> None:
    """Whatever its own words are: codes of digits alone are names, and 3,123 is what a decimal comma makes of it."""
    data = ["id;step;code;load"]
    data += [
        f"{i};{s};{'12A'[(i + s) % 3]};{RNG.normal(3000, 500):.3f}".replace(".", ",")
        for i in range(20)
        for s in range(4)
    ]
    (tmp_path / "data.csv").write_text("\n".join(data))
    source = Sequences(tmp_path / "data.csv", id_column="id", order_column="step", held_out=0)
    (tmp_path / "asked.csv").write_text("id;step;code;load\n07;0;1;3,123\n07;1;2;\n07;2;;2,5\n07;3;1;\n")
    rows = source.modality.read_given(tmp_path / "asked.csv")
    known = rows.own[1][0]
    assert np.array_equal(known, [[0, 3.123], [1, NAN], [NAN, 2.5], [0, NAN]], equal_nan=True)
    assert rows.own[0].frame["id"].tolist() == ["07"] * 4


def test_sequences_one_after_another_come_back_so_and_lengths_have_to_fit(tmp_path: Path) -> None:
    source = Sequences([RNG.normal(size=(n, 2)) for n in (3, 5, 4, 5)], held_out=0)
    x, lengths, file = np.arange(10.0).reshape(5, 2) / 10, np.array([3, 2]), tmp_path / "asked.npz"
    x[1, 1] = x[4, 0] = NAN
    np.savez(file, values=x, lengths=lengths)
    rows = source.modality.read_given(file)
    assert [own.tolist() for own in np.isnan(rows.own[0].steps[1])] == [[False, False], [True, False]]
    drawn = torch.full((2, 5, 2), 9.0, dtype=torch.float64)
    written = source.modality.write_given(drawn, {LENGTH: torch.tensor(lengths)}, rows, 1, tmp_path)[0]
    with np.load(written) as found:
        assert np.array_equal(found["values"], np.nan_to_num(x, nan=9)) and np.array_equal(found["lengths"], lengths)
    for wrong in ([3, 3], [5, 0], [4.0, 1.0]):
        np.savez(file, values=x, lengths=np.array(wrong))
        with pytest.raises(UserError, match="lengths"):
            source.modality.read_given(file)


def test_a_step_of_a_channel_that_no_sequence_has_is_named() -> None:
    x = RNG.normal(size=(6, 4, 2))
    x[:, 2, 1] = NAN
    with pytest.raises(UserError, match="no training row of sequences has 'value_1' at step 2"):
        Sequences(x, holes=True, held_out=0)
