"""``advect forecast`` from a flow of hourly sequences that knows nothing yet, or moves nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect.cli import run
from advect.core.errors import UserError
from advect.model import forecast
from advect.model.flow import Flow
from advect.model.load import load
from forked import ranks

pd = pytest.importorskip("pandas")


def hours(days: int, sensors: int = 2, first: str = "2024-03-01"):
    rows = []
    for sensor in range(sensors):
        times = pd.date_range(first, periods=24 * days, freq="h")
        load = (10 + 5 * np.sin(times.hour.to_numpy() / 4 + sensor)).round(2)
        rows.append(pd.DataFrame({"sensor": f"s{sensor:02}", "time": times, "load": load, "n": times.hour % 5}))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def hourly_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hourly")
    hours(12).to_csv(folder / "load.csv", index=False)
    words = f"""train sequences --data-dir {folder}/load.csv --id-column sensor --order-column time --max-length 36
        --long window --stride 6 --mask prefix --width 16 --depth 1 --heads 2 --max-steps 3 --sample-every 0
        --run-dir {folder}/run --batch-size 8"""
    run(words.split())
    return folder / "run"


def test_draws_and_quantiles_continue_each_series_in_its_own_types(hourly_run: Path, tmp_path: Path) -> None:
    frame = hours(3, first="2024-03-20")
    frame["time"] = frame["time"].dt.strftime("%Y-%m-%d %H:%M:%S")
    frame.iloc[::-1].to_csv(tmp_path / "now.csv", index=False)
    words = f"forecast {hourly_run} {tmp_path}/now.csv --horizon 6 --draws 7 --num-steps 2 --output-dir {tmp_path}/out"
    run(words.split())
    names = ["draws.csv", "forecast.png", "quantiles.csv", "samples.json"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == names
    draws = pd.read_csv(tmp_path / "out/draws.csv", dtype=str)
    assert list(draws.columns) == ["sensor", "time", "load", "n", "draw"] and len(draws) == 2 * 7 * 6
    assert draws["sensor"].tolist() == ["s01"] * 42 + ["s00"] * 42
    assert draws["time"].tolist()[:6] == [f"2024-03-23 0{h}:00:00" for h in range(6)]  # after the end of the data
    assert draws["draw"].tolist() == [str(d) for _ in range(2) for d in range(1, 8) for _ in range(6)]
    assert draws["load"].str.fullmatch(r"\d+\.\d+").all() and draws["n"].str.fullmatch("[0-4]").all()
    own = draws[(draws["sensor"] == "s00") & (draws["time"] == "2024-03-23 02:00:00")]["load"].astype(float)
    quantiles = pd.read_csv(tmp_path / "out/quantiles.csv")
    found = quantiles[(quantiles["sensor"] == "s00") & (quantiles["time"] == "2024-03-23 02:00:00")]
    assert found["quantile"].tolist() == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert np.allclose(found["load"], np.quantile(own, found["quantile"]), atol=0.0051)
    Image.open(tmp_path / "out/forecast.png").verify()
    before = {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    run(words.split())
    assert before == {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="already holds samples of another call: n was 14 there and is 16 here"):
        run([*words.split(), "--draws", "8"])
    with pytest.raises(UserError, match=r"guidance is 2\.0, but this flow has no conditions"):
        run([*words.split(), "--guidance", "2", "--overwrite"])
    assert before == {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}  # a mistake costs nothing
    (tmp_path / "out/samples.json").unlink()
    with pytest.raises(UserError, match="already holds samples; name another folder, or give --overwrite"):
        run(words.split())
    run([*words.split(), "--overwrite"])
    assert before == {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}


def test_a_flow_relative_to_what_is_known_follows_the_level_of_a_series(tmp_path: Path) -> None:
    frame = hours(8, sensors=4)[["sensor", "time", "load"]]
    frame["load"] += frame.groupby("sensor").ngroup() * 100.0
    frame.to_csv(tmp_path / "load.csv", index=False)
    words = f"""train sequences --data-dir {tmp_path}/load.csv --id-column sensor --order-column time --max-length 24
        --long window --mask prefix --mask-relative --mask-horizon 4 --width 16 --depth 1 --heads 2 --max-steps 3
        --sample-every 0 --scaling standard --run-dir {tmp_path}/run --batch-size 8"""
    run(words.split())
    flow = load(tmp_path / "run")
    assert flow.relative
    run(f"forecast {tmp_path}/run {tmp_path}/load.csv --horizon 4 --draws 9 --output-dir {tmp_path}/out".split())
    drawn = pd.read_csv(tmp_path / "out/draws.csv").groupby("sensor")["load"].mean()
    own = frame.groupby("sensor")["load"].apply(lambda x: x[-20:].mean())
    assert (drawn - own).abs().max() < 100 < own.max() - own.min()  # though the network knows nothing yet


def test_a_file_without_an_id_is_one_series(hourly_run: Path, tmp_path: Path) -> None:
    hours(1, sensors=1).drop(columns="sensor").to_csv(tmp_path / "one.csv", index=False)
    words = f"forecast {hourly_run} {tmp_path}/one.csv --horizon 3 --draws 2 --num-steps 1 --output-dir {tmp_path}/o"
    run(words.split())
    draws = pd.read_csv(tmp_path / "o/draws.csv")
    assert list(draws.columns) == ["time", "load", "n", "draw"]
    assert draws["time"].tolist() == [f"2024-03-02 0{h}:00:00" for _ in range(2) for h in range(3)]
    facts = json.loads((tmp_path / "o/samples.json").read_text())
    assert (facts["horizon"], facts["draws"], facts["files"][0]) == (3, 2, "draws.csv")


@pytest.mark.parametrize(
    ("flags", "change", "words"),
    [
        (
            "--horizon 36",
            {},
            "--horizon 36 leaves no known step in the 36 that the flow was trained on",
        ),
        (
            "--horizon 20 --history 20",
            {},
            "--history 20 and --horizon 20 are 40 steps, and the flow was trained on 36",
        ),
        ("", {"n": 3.5}, "has 3.5 in row 0, step 0 of 'n': the data have whole numbers"),
        ("", {"load": 999.0}, "has 999 in row 0, step 0 of 'load': the data lie in"),
        ("", {"load": "much"}, "has 'much' in column 'load', no number"),
        ("", {"load": np.nan, "n": np.nan}, "the last 12 steps of sensor s00 have no value"),
    ],
)
def test_what_cannot_be_forecast_is_told_and_leaves_nothing(
    hourly_run: Path, tmp_path: Path, flags: str, change: dict, words: str
) -> None:
    hours(2).assign(**change).to_csv(tmp_path / "now.csv", index=False)
    with pytest.raises(UserError, match=words):
        run(f"forecast {hourly_run} {tmp_path}/now.csv --output-dir {tmp_path}/out {flags}".split())
    assert not (tmp_path / "out").exists()


def test_other_flows_and_files_are_refused(hourly_run: Path, moons_run: Path, tmp_path: Path) -> None:
    hours(2).drop(columns="load").rename(columns={"n": "loda"}).to_csv(tmp_path / "now.csv", index=False)
    for words, match in (
        (
            f"{hourly_run} {tmp_path}/now.csv",
            "has no column 'load', which the flow was trained on; did you mean 'loda'",
        ),
        (f"{moons_run} {tmp_path}/now.csv", "advect forecast is for sequences, and this flow makes vector data"),
        (f"{hourly_run} {tmp_path}/none.csv", "does not exist"),
        (f"{hourly_run}", "needs a run and a file of series"),
    ):
        with pytest.raises(UserError, match=match):
            run(["forecast", *words.split()])


def test_two_processes_and_a_call_that_was_killed_leave_the_bytes_of_one(
    hourly_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours(2).to_csv(tmp_path / "now.csv", index=False)
    words = f"forecast {hourly_run} {tmp_path}/now.csv --horizon 3 --draws 7 --num-steps 2 --part-size 7 --device cpu"
    contents = lambda name: {f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())}
    run(f"{words} --output-dir {tmp_path}/one".split())
    one = contents("one")
    with ranks(2, f"{words} --output-dir {tmp_path}/two", cwd=tmp_path) as both:
        assert [rank.code for rank in both.wait(120)] == [0, 0]
    assert contents("two") == one and len(one) == 4

    sample, parts = Flow.sample, []

    def interrupted(self: Flow, n: int, **options):
        if options["rows"] != range(1):
            parts.append(options["rows"])
            if len(parts) == 2:
                raise KeyboardInterrupt
        return sample(self, n, **options)

    def nothing(*_):
        raise KeyboardInterrupt

    again = f"{words} --output-dir {tmp_path}/again".split()
    monkeypatch.setattr(Flow, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    assert not list((tmp_path / "again").glob("*.csv"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(forecast, "save_png", nothing)
        run(again)
    assert not (tmp_path / "again/samples.json").exists()
    run(again)
    assert contents("again") == one and parts == [range(0, 7), range(7, 14), range(7, 14)]
