"""Conditions of every kind: named, drawn, written to metadata and read back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advect.config.config import Config
from advect.config.presets import get_preset
from advect.core.errors import UserError
from advect.core.types import LENGTH, NULL, Category, Conditions, DataSpec, Length, Quantity
from advect.data import Identity, Moons, Table
from advect.data.modality import labels_of
from advect.data.tables.dataset import frame_of
from advect.model.conditions import CYCLE, Encoded, parse_conditions, resolve_conditions
from advect.model.flow import Flow
from advect.model.load import ModelMetadata

DOSE = Quantity(("dose", "hours"), (10.0, 2.0), (5.0, 0.5), ((10.0, 2.0), (20.0, 3.0), (0.0, 1.0)))
SPEC = DataSpec(
    (6, 2),
    "sequence",
    {"type": Category(("a", "b"), (0.25, 0.75)), "dose": DOSE, LENGTH: Length((0.0, 0.5, 0.0, 0.0, 0.0, 0.5))},
)


def resolve(n: int = 3, **cond) -> Conditions:
    return resolve_conditions(SPEC, n, cond, seed=0)


@pytest.mark.parametrize(
    "cond",
    [
        {},
        {"type": "cycle", "dose": "cycle", LENGTH: "cycle"},
        {"type": "none", "dose": None, LENGTH: 2},
        {"type": "b", "dose": (1.0, 2.0)},
        {"type": list("ababababa"), "dose": torch.arange(18.0).view(9, 2), LENGTH: torch.arange(9) % 6 + 1},
    ],
)
def test_some_rows_are_those_of_all(cond: dict) -> None:
    whole, some = (resolve_conditions(SPEC, 9, cond, 5, rows) for rows in (None, range(4, 8)))
    for name, value in whole.items():
        torch.testing.assert_close(some[name], value[4:8], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [(20, 1.5), [20.0, 1.5], "20,1.5", "2e1, 1.5"])
def test_a_quantity_is_named_in_the_units_of_the_data(value) -> None:
    torch.testing.assert_close(resolve(dose=value)["dose"], torch.tensor([[2.0, -1.0]]).expand(3, 2))


def test_a_quantity_of_one_number_is_named_by_it() -> None:
    spec = DataSpec((2,), "vector", {"age": Quantity(("age",), (50.0,), (10.0,), ((40.0,),))})
    assert resolve_conditions(spec, 2, {"age": 65}, 0)["age"].tolist() == [[1.5], [1.5]]
    assert resolve_conditions(spec, 2, {"age": "65"}, 0)["age"].tolist() == [[1.5], [1.5]]


def test_none_is_a_row_of_nan_and_rows_are_in_the_units_of_the_data() -> None:
    for none in (None, "none", math.nan):
        assert resolve(dose=none)["dose"].isnan().all()
    rows = [[20, 1.5], None, [10, 2]]
    torch.testing.assert_close(
        resolve(dose=rows)["dose"], torch.tensor([[2, -1], [math.nan] * 2, [0, 0]]), equal_nan=True
    )
    rows = torch.randn(3, 2)
    assert torch.equal(resolve(dose=Encoded(rows))["dose"], rows)
    assert resolve(dose="cycle")["dose"][:, 0].tolist() == [0, 2, -2]


def test_what_is_not_named_is_drawn_from_the_data_and_does_not_depend_on_n() -> None:
    many = resolve(4000)
    assert set(map(tuple, many["dose"].tolist())) == {(0.0, 0.0), (2.0, 2.0), (-2.0, -2.0)}
    assert abs((many["dose"][:, 0] == 2).float().mean() - 1 / 3) < 0.04
    assert set(many[LENGTH].tolist()) == {2, 6} and abs((many[LENGTH] == 2).float().mean() - 0.5) < 0.04
    few = resolve(10)
    assert all(torch.equal(few[name], many[name][:10]) for name in SPEC.conditions)
    assert [few[name].dtype for name in SPEC.conditions] == [torch.int64, torch.float32, torch.int64]


def test_a_length_is_a_number_of_steps() -> None:
    assert resolve(length=4)[LENGTH].tolist() == [4, 4, 4] == resolve(length="4")[LENGTH].tolist()
    assert resolve(7, length="cycle")[LENGTH].tolist() == [1, 2, 3, 4, 5, 6, 1]


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"dose": 3.0}, r"'dose' needs 2 finite numbers \(dose, hours\), got 3.0"),
        ({"dose": "1,x"}, "needs numbers such as"),
        ({"dose": (1.0, math.inf)}, "needs 2 finite numbers"),
        ({"dose": torch.zeros(3)}, r"'dose' must have shape \(3, 2\)"),
        ({"type": ["a", "b"]}, "'type' must have 3 values, one a sample, got 2"),
        ({"type": 0}, "'type' has no value 0; choose from a, b"),
        ({"type": "1"}, "'type' has no value '1'"),
        ({"type": Encoded(torch.zeros(2))}, r"'type' must have shape \(3,\)"),
        ({"length": 0}, "'length' must lie in 1 to 6, got 0"),
        ({"length": 7}, "'length' must lie in 1 to 6, got 7"),
        ({"length": torch.tensor([1, -1, 2])}, "'length' must lie in 1 to 6"),
        ({"length": None}, "'length' is always given; name one of 1 to 6"),
        ({"length": 2.5}, "'length' has no value 2.5; it is a whole number of 1 to 6"),
        ({"type": 0.5}, "'type' has no value 0.5"),
    ],
)
def test_mistakes_are_told(cond: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(**cond)


CODES = DataSpec(
    (2,),
    "vector",
    {
        "label": Category(("1", "2", "3"), (0.2, 0.3, 0.5)),
        "animal": Category(("cat", "dog", "none"), (0.2, 0.3, 0.5), (0, 1, 2)),
        "flag": Category(("False", "True"), (0.5, 0.5)),
        "dose": Category(("0.1", "2.0"), (0.5, 0.5)),
        "code": Category(("007", "7"), (0.5, 0.5)),
        "a": Category(("x",), (1.0,)),
        "a=b": Category(("x", "y=z"), (0.5, 0.5)),
    },
)


@pytest.mark.parametrize(
    ("name", "value", "codes"),
    [
        *(("label", v, [1, 1]) for v in (2, "2", 2.0, "2.0", np.int64(2), np.float32(2), np.str_("2"), b"2")),
        *(("label", v, [1, 1]) for v in (torch.tensor(2), np.array(2), np.array([2, 2]))),
        *(("label", v, [2, 0]) for v in ([3, 1], (3, 1), np.array(["3", "1"]), torch.tensor([3, 1]))),
        ("label", [[3], [1]], None),
        ("label", [2, None], [1, NULL]),
        ("animal", "dog", [1, 1]),
        ("animal", 1, [1, 1]),
        ("animal", "none", [2, 2]),
        ("animal", None, [NULL, NULL]),
        ("flag", [True, np.bool_(False)], [1, 0]),
        ("dose", np.float32(0.1), [0, 0]),
        ("dose", "2", [1, 1]),
        ("code", "007", [0, 0]),
        ("code", 7, [1, 1]),
    ],
)
def test_a_value_is_the_label_in_the_data_and_never_its_place(name, value, codes) -> None:
    if codes is None:
        with pytest.raises(UserError, match="one value a sample"):
            resolve_conditions(CODES, 2, {name: value}, 0)
    else:
        assert resolve_conditions(CODES, 2, {name: value}, 0)[name].tolist() == codes


def test_words_that_are_labels_mean_the_labels() -> None:
    spec = DataSpec((2,), "vector", {"ride": Category(("cycle", "none", "walk"), (0.2, 0.3, 0.5))})
    codes = lambda value: resolve_conditions(spec, 3, {"ride": value}, 0)["ride"].tolist()
    assert codes("cycle") == [0, 0, 0] and codes("none") == [1, 1, 1]
    assert codes(CYCLE) == [0, 1, 2] and codes(None) == [NULL] * 3


@pytest.mark.parametrize(("name", "value"), [("label", 0), ("label", "0"), ("label", "03"), ("code", "07")])
def test_what_no_label_is_equal_to_is_refused(name, value) -> None:
    with pytest.raises(UserError, match=rf"condition '{name}' has no value"):
        resolve_conditions(CODES, 2, {name: value}, 0)


def test_words_may_have_an_equals_sign_in_name_and_value() -> None:
    assert parse_conditions(["a=b=y=z", "label=2"], CODES) == {"a=b": "y=z", "label": "2"}
    assert parse_conditions(["a=x"], CODES) == {"a": "x"}
    with pytest.raises(UserError, match="gives label twice"):
        parse_conditions(["label=1", "label=2"], CODES)


def test_samples_tell_their_conditions_by_labels() -> None:
    class Still(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
            return torch.zeros_like(x_t)

    flow = Flow(Still(), CODES, Identity())
    samples = flow.sample(3, steps=1, cond={"label": [3, 1, 2], "animal": ["dog", None, 2], "dose": 2})
    told = samples.cond
    assert told["label"].tolist() == [3, 1, 2] and told["label"].dtype == np.int64
    assert told["animal"].tolist() == ["dog", "", "none"] and told["dose"].tolist() == [2.0, 2.0, 2.0]
    again = flow.sample(3, steps=1, cond={"label": told["label"], "dose": told["dose"]})
    assert torch.equal(again.encoded["label"], samples.encoded["label"])


def card_of(spec: DataSpec) -> ModelMetadata:
    source = Moons()
    config: Config = get_preset("moons").config
    return replace(ModelMetadata.from_run(config, "moons", source, {"kind": "gaussian"}), spec=spec)


def test_a_card_keeps_conditions_of_every_kind() -> None:
    assert ModelMetadata.from_text(card_of(SPEC).to_text(), "here").spec == SPEC


def test_metadata_of_another_format_are_refused_in_one_sentence() -> None:
    values = json.loads(card_of(SPEC).to_text())
    for format_, fix in ((1, "train it again"), (values["format"] + 1, "install a newer one")):
        with pytest.raises(UserError, match=rf"here has model format {format_}, .*{fix}"):
            ModelMetadata.from_text(json.dumps(values | {"format": format_}), "here")


class Ones(nn.Module):
    """A velocity of one everywhere, padding included."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        assert cond is not None and set(cond) == set(SPEC.conditions)
        return torch.ones_like(x_t)


@pytest.mark.parametrize("way", [{}, {"diffusion": 0.5}])
def test_samples_are_zero_after_their_last_real_step(way: dict) -> None:
    flow = Flow(Ones(), SPEC, Identity())
    x = flow.sample(9, steps=3, batch_size=4, cond={"length": "cycle"}, **way).x
    steps = x.abs().sum(2) > 0
    assert steps.sum(1).tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert all(row[: int(n)].all() for row, n in zip(steps, steps.sum(1), strict=True))


def test_padding_stays_zero_on_the_way_back() -> None:
    flow, given = Flow(Ones(), SPEC, Identity()), {"length": 2}
    x = flow.sample(3, steps=2, cond=given).x
    z = flow.encode(x, cond=given)
    assert z[:, :2].all() and not z[:, 2:].any()
    torch.testing.assert_close(flow.decode(z, cond=given), x)


class ByLabel(nn.Module):
    """The constant velocity 1 of label 0, 3 of label 1, and -1 without a label."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        label = cond["label"] if cond else torch.full((len(x),), NULL)
        return torch.where(label == NULL, -1.0, 1.0 + 2 * label)[:, None].expand_as(x)


def test_decoding_is_guided_as_sampling_is_and_encoding_undoes_it() -> None:
    flow = Flow(ByLabel(), DataSpec((2,), "vector", {"label": Category(("a", "b"), (0.5, 0.5))}), Identity())
    z, of_b = torch.randn(5, 2), {"label": "b"}
    for guide, moved in (
        ({}, 3.0),
        ({"guidance": 2.0}, -1 + 2 * 4.0),
        ({"guidance": 0.0}, -1.0),
        ({"guidance": 2.0, "guidance_interval": (0.0, 0.495)}, 0.5 * 7 + 0.5 * 3),
    ):
        x = flow.decode(z, cond=of_b, solver="euler", **guide)
        torch.testing.assert_close(x, z + moved)
        torch.testing.assert_close(flow.encode(x, cond=of_b, steps=200, **guide), z, atol=0.05, rtol=0)
        drawn = flow.sample(5, cond=of_b, solver="euler", steps=50, trajectory=True, **guide).x
        torch.testing.assert_close(drawn[-1] - drawn[0], torch.full((5, 2), moved))
    for call in (flow.encode, flow.decode):
        with pytest.raises(UserError, match="guidance is 1, which is none"):
            call(z, guidance_interval=(0.1, 0.5))
        with pytest.raises(UserError, match="0 <= lo < hi <= 1"):
            call(z, cond=of_b, guidance=2.0, guidance_interval=(0.5, 0.1))
    with pytest.raises(UserError, match="no conditions to guide by"):
        Flow(Ones(), DataSpec((2,), "vector", {}), Identity()).decode(z, guidance=2.0)


def test_a_flow_that_knows_no_null_refuses_a_missing_quantity() -> None:
    flow = Flow(Ones(), SPEC, Identity(), null=False)
    flow.conditions(2)
    with pytest.raises(UserError, match="knows no missing condition"):
        flow.conditions(2, {"dose": "none"})


def test_a_density_over_several_lengths_is_refused() -> None:
    with pytest.raises(UserError, match="sequences of several lengths"):
        Flow(Ones(), SPEC, Identity()).log_prob(torch.zeros(2, 6, 2))


def test_null_is_the_number_that_networks_know() -> None:
    assert resolve(type="none")["type"].tolist() == [NULL] * 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ""])
def test_dates_and_large_numbers_are_named_as_in_the_data(tmp_path, suffix) -> None:
    pd = pytest.importorskip("pandas")
    days = pd.date_range("2020-01-01", periods=60, freq="7h")
    table = {"x": np.arange(60.0), "at": days, "id": 2**60 + 1000 * np.arange(60), "day": days.normalize().astype(str)}
    frame = pd.DataFrame(table)
    if suffix:
        write = frame.to_csv if suffix == ".csv" else frame.to_parquet
        write(tmp_path / f"t{suffix}", index=False)
    data = Table(tmp_path / f"t{suffix}" if suffix else frame, conditions=("at", "id", "day"), held_out=0.0)
    asked = {"at": "2020-01-10T14:00:00", "id": str(2**60 + 7000), "day": np.datetime64("2020-01-03", "ns")}
    told = labels_of(resolve_conditions(data.spec, 2, asked, 0), data.spec)
    assert abs(told["at"] - np.datetime64("2020-01-10T14:00:00")).max() < np.timedelta64(2, "s")
    assert (told["id"] - 2**60).tolist() == [7000, 7000]
    assert (told["day"] == np.datetime64("2020-01-03")).all()
    each = {"at": days[:2], "id": [2**60, 2**60 + 59_000], "day": [pd.Timestamp("2020-01-02", tz="UTC"), None]}
    given = resolve_conditions(data.spec, 2, each, 0)
    assert torch.isnan(given["day"][:, 0]).tolist() == [False, True]
    assert (labels_of(given, data.spec)["id"] - 2**60).tolist() == [0, 59_000]
    with pytest.raises(UserError, match="needs an ISO date such as 2024-01-31 or 2024-01-31T10:00; got '5'"):
        resolve_conditions(data.spec, 2, {"at": "5"}, 0)


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timestamp[us][pyarrow]", "text"])
def test_times_are_drawn_in_the_steps_of_the_data_and_told_as_asked(dtype) -> None:
    """Whole half-hours are drawn; a condition between two is neither moved in what is told nor in what is written."""
    pd = pytest.importorskip("pandas")
    times = pd.Series(pd.date_range("2020-01-01 00:30", periods=4000, freq="90min"))
    times = times.dt.strftime("%Y-%m-%d %H:%M:%S") if dtype == "text" else times.astype(dtype)
    data = Table(pd.DataFrame({"x": np.arange(4000.0), "at": times, "seen": times}), conditions=("at",), held_out=0.0)
    noisy = data.transform.inverse(
        torch.randn(500, sum(data.transform.widths), generator=torch.Generator().manual_seed(0))
    )
    begin = pd.Timestamp("2020-01-01 00:30")
    for when, slack in ((np.datetime64("2020-05-10T14:10:00"), 2), (np.datetime64("2020-05-10T14:00:00"), 0)):
        cond = resolve_conditions(data.spec, 500, {"at": str(when)}, 0)
        told = labels_of(cond, data.spec)["at"]
        assert abs(told - when).max() <= np.timedelta64(slack, "s"), when
        frame = frame_of(noisy, cond, data.metadata)
        written, seen = pd.to_datetime(frame["at"]), pd.to_datetime(frame["seen"])
        assert (written.to_numpy() == told).all()
        assert ((seen - begin) % pd.Timedelta("90min") == pd.Timedelta(0)).all()
        assert seen.nunique() > 100


def test_durations_are_refused_as_conditions() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": np.arange(9.0), "wait": pd.to_timedelta(np.arange(9), unit="min")})
    with pytest.raises(UserError, match=r"'wait' holds timedelta64.*durations or times of day; make them numbers"):
        Table(frame, conditions=("wait",))


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (4, 6), (2, 2, 3), (3, 6, 4), (1, 5)])
def test_conditions_in_turn_have_each_combination_equally_often(sizes) -> None:
    names = [f"c{i}" for i in range(len(sizes))]
    kinds = {n: Category(tuple(map(str, range(k))), (1 / k,) * k) for n, k in zip(names, sizes, strict=True)}
    spec = DataSpec((2,), "vector", kinds)
    total = math.prod(sizes)
    some = resolve_conditions(spec, 2 * total, dict.fromkeys(names, "cycle"), 0)
    rows = list(zip(*(some[n].tolist() for n in names), strict=True))
    assert len(set(rows[:total])) == total and rows[:total] == rows[total:]
    assert some[names[0]][: sizes[0]].tolist() == list(range(sizes[0]))
    part = resolve_conditions(spec, 2 * total, dict.fromkeys(names, "cycle"), 0, range(total - 1, total + 1))
    assert list(zip(*(part[n].tolist() for n in names), strict=True)) == rows[total - 1 : total + 1]
