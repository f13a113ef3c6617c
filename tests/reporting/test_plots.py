"""Charts: SVG that a page can hold."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from advect.reporting import plots
from advect.reporting.style import duration, number, plural


def charts() -> dict[str, str]:
    rng = np.random.default_rng(0)
    steps = list(range(0, 50_000, 10))
    values = np.exp(-np.arange(5000) / 900) + 0.1 + 0.01 * rng.random(5000)
    curve = {"nfe": [1, 2, 4], "distance": [9.0, 2.0, 0.1]}
    return {
        "loss": plots.loss_chart((steps, values.tolist()), (steps[::500], values[::500].tolist())),
        "lr": plots.step_chart((steps, values.tolist()), "lr", "learning rate", mean=False),
        "quality": plots.quality_chart({"euler": curve, "rk4": curve}, 0.08),
        "neighbours": plots.neighbour_chart(rng.random(300), rng.random(200), 0.1),
        "trajectories": plots.trajectory_chart(rng.random((10, 200, 2))),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return charts()


def test_charts_are_well_formed_without_any_address(drawn):
    for name, svg in drawn.items():
        assert svg.startswith('<svg class="chart"') and "http" not in svg, name
        ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


def test_ids_are_unique_on_a_page_and_references_resolve(drawn):
    page = "<p>" + "".join(drawn.values()).replace("xlink:href", "href") + "</p>"
    elements = list(ElementTree.fromstring(page).iter())
    ids = [e.get("id") for e in elements if e.get("id")]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for e in elements if (v := e.get("href"))}
    wanted |= {e.get("clip-path", "url(#)")[5:-1] for e in elements} - {""}
    assert wanted and wanted <= set(ids)


def test_colours_come_from_the_page(drawn):
    for svg in drawn.values():
        assert "var(--second)" in svg or "var(--first)" in svg
        assert "var(--muted)" in svg and "var(--line)" in svg and "#0101" not in svg


def test_text_stays_text_and_charts_stay_small(drawn):
    assert ">network evaluations a sample</text>" in drawn["quality"]
    assert ">rk4</text>" in drawn["quality"] and "floor" in drawn["quality"]
    assert all(len(svg) < 150_000 for svg in drawn.values())
    assert len(drawn["loss"]) < 30_000


def test_the_same_data_give_the_same_chart(drawn):
    assert charts() == drawn


def test_no_global_state_of_matplotlib_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.step_chart(([1], [2.0]), "one", "one row")
    assert dict(matplotlib.rcParams) == before


def test_smoothing_keeps_a_line_and_removes_noise():
    line = np.linspace(3, 5, 1000)
    assert np.allclose(plots.smooth(line), line)
    noise = np.random.default_rng(0).normal(size=4000)
    assert plots.smooth(noise)[200:-200].std() < 0.15
    assert plots.smooth([7.0]).tolist() == [7.0]


def test_numbers_near_one_are_not_shown_as_one():
    values = (0.9995, 0.99954321, 0.99996, 0.999999, 0.9876, 1.0004, 0.5, 1e-5)
    assert [number(v) for v in values] == ["0.9995", "0.99954", "0.99996", "0.999999", "0.988", "1", "0.5", "1e-05"]


def test_numbers_read_well():
    assert [number(v) for v in (0, 0.01234, 4.5678, 123.4, 12345.6, 6.789e6, 1.2e-7, float("nan"))] == [
        *("0", "0.0123", "4.57", "123", "12,346", "6.79 M", "1.2e-07", "nan")
    ]
    assert [duration(s) for s in (0.25, 59, 61, 3600, 90_061)] == [
        "0.25 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "1 d 1 h",
    ]
    assert (plural(1, "epoch"), plural(1234, "step")) == ("1 epoch", "1,234 steps")
