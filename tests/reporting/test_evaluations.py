"""What ``advect eval`` and ``advect reflow`` measured, on their pages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advect.core.errors import UserError
from advect.evaluation.results import table
from advect.reporting import write_report
from advect.reporting.plots import quality_chart
from advect.reporting.reflow_page import write_reflow


def result(distances: dict[int, float], *, floor: float = 0.5, std: float | None = None) -> dict[str, Any]:
    way = {"solver": "euler", "grid": "uniform", "diffusion": None}
    return {
        "format": 1,
        "protocol": {
            "data": "toy",
            "split": "held-out",
            "reference": 900,
            "features": {"name": "pixel space"},
            "samples": 1234,
            "guidance": 1.0,
            "seeds": [0, 1],
        },
        "subject": {"run": "runs/toy", "checkpoint": "step-00000007", "step": 7},
        "made_with": {},
        "floor": {"samples": 800, "metrics": {"frechet": floor}},
        "flow": {"straightness": {"value": 0.5, "relative": 0.25}},
        "points": [
            {
                **way,
                "steps": n,
                "nfe": n,
                "seconds": 1.0,
                "metrics": {"frechet": {"mean": d, "std": std, "values": [d]}},
            }
            for n, d in distances.items()
        ],
    }


OVER_CONFIDENT = {
    "rows": 100,
    "draws": 9,
    "level": 0.9,
    "columns": ["y"],
    "left_out": [],
    "kind": "over-confident",
    "sentence": "Over-confident: y",
    "advice": "",
    "coverage": [0.5],
    "crps": [1.0],
    "crps_error": [0.1],
    "sharpness": [1.0],
}


def test_a_report_has_the_newest_evaluations_with_spread_and_floor(run: Path) -> None:
    folder = run / "evaluation"
    folder.mkdir(exist_ok=True)
    for i in range(8):
        file = folder / f"eval-{i}.json"
        file.write_text(json.dumps(result({1: 10.0 + i, 2: 5.0, 4: 2.0}, std=0.25)))
        os.utime(file, (i, i))
    (folder / "eval-damaged.json").write_text("{")
    page = write_report(run).read_text()
    places = [page.find(f"<td>{10 + i}.00 ± 0.25</td>") for i in range(8)]
    assert places[:2] == [-1, -1] and min(places[2:]) > 0 and places[2:] == sorted(places[2:], reverse=True)
    assert page.count("<td>floor: 800 real training rows</td><td></td><td>0.5</td>") == 6
    assert page.count('aria-label="eval-') == 6 and "1,234 samples" in page and "seeds 0 1. Straightness 0.25" in page
    assert "evaluation/eval-damaged.json is damaged" in page


def test_calibration_alone_is_told_without_an_empty_table(run: Path) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    for file in (run / "evaluation").glob("eval-*.json"):
        file.unlink()
    found = result({})
    found["floor"] = {"samples": 0, "metrics": {}}
    found["flow"] = {"calibration": OVER_CONFIDENT}
    (run / "evaluation" / "eval-1.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    assert "seeds 0 1. Over-confident: y." in page and "<th>evaluations</th>" not in page


def test_intervals_are_in_table_and_chart_as_they_were_printed(run: Path) -> None:
    found = result({1: 10.0, 2: 5.0, 4: 2.0})
    for point, ends in zip(found["points"], ([8.5, 11.5], [4, 6], [1.5, 2.5]), strict=True):
        point["metrics"]["frechet"]["interval"] = ends
    found["floor"]["intervals"] = {"frechet": [0.25, 0.75]}
    found["left_out"] = {"precision": "needs 6 rows or more"}
    found["protocol"]["reference"] = 90
    (run / "evaluation").mkdir(exist_ok=True)
    before = write_report(run).read_text()
    (run / "evaluation/eval-0.json").write_text(json.dumps(found))
    page, lines = write_report(run).read_text(), table(found)
    for words in ("10.0 [8.5, 11.5]", "5.0 [4.0, 6.0]", "2.00 [1.50, 2.50]", "0.50 [0.25, 0.75]"):
        assert f"<td>{words}</td>".replace(", ", ",\u00a0") in page and any(words in line for line in lines)
    for note in lines[-3:]:
        assert note in page and note not in before
    assert "LineCollection" in page.split('aria-label="eval-0"')[1].split("</svg>")[0]


def test_a_floor_below_zero_leaves_the_logarithm_to_the_others() -> None:
    curves = {"a": {"nfe": [1, 2, 4], "distance": [5.0, 0.5, 0.01]}}
    assert "below 0" in quality_chart(curves, -0.001) and "below 0" not in quality_chart(curves, 0.001)


@pytest.fixture
def reflowed(tmp_path: Path) -> Path:
    flows = []
    for name, distances in (("1-rectified", {1: 9.0, 4: 3.0, 20: 1.5}), ("2-rectified", {1: 2.0, 4: 1.25, 20: 1.0})):
        Image.new("L", (8, 8), 200).save(tmp_path / f"{name}.png")
        entry = {"name": name, "run": f"runs/{name}", "about": "Trained.", "pictures": {"1": f"{name}.png"}}
        flows.append({**entry, "result": result(distances)})
    told = {"format": 1, "title": "faces", "metric": "frechet", "shown": [1, 4], "flows": flows}
    (tmp_path / "reflow.json").write_text(json.dumps(told))
    return tmp_path


def test_the_page_of_a_reflow_says_how_few_evaluations_do_for_how_many(reflowed: Path) -> None:
    page = write_reflow(reflowed).read_text()
    assert "1 evaluation of the last flow is at least as good as 4 of the first." in page
    assert "<td>2-rectified</td><td>2</td><td>1.25</td><td>1</td><td>0.25</td>" in page
    assert page.count("<img src=") == 2  # at four evaluations there are no pictures
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "").split("<svg")[0]


def test_a_damaged_reflow_is_told(reflowed: Path) -> None:
    for text in ("{", json.dumps({"format": 9})):
        (reflowed / "reflow.json").write_text(text)
        with pytest.raises(UserError, match="repeat advect reflow"):
            write_reflow(reflowed)
