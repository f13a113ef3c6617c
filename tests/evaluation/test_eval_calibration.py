"""Calibration of runs with a real-valued condition: measured, reported, and told by the doctor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import advect as library
from advect.cli import run as call
from advect.commands.evaluate import evaluate
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.doctor.examine import examine_run
from advect.evaluation.protocol import EvalConfig
from advect.evaluation.quality import measure_quality
from advect.evaluation.results import calibration_lines, flow_lines, read_result
from advect.metrics import crps, sharpness
from advect.metrics.flow_calibration import draws_given, summarise
from advect.metrics.statistics import subsample
from advect.model.conditions import encoded
from advect.reporting import write_report

QUICK = (
    "--width 8 --depth 1 --max-steps 2 --batch-size 16 --sample-every 0 --log-every 1 --held-out 0.5 --sample-steps 4"
)


def write_table(path: str, n: int = 320) -> None:
    rng = np.random.default_rng(0)
    x, kinds = rng.normal(size=n), rng.integers(2, size=n)
    y, z = 2 * x + rng.normal(size=n), rng.normal(size=n)
    lines = [f"{a:.6f},{b:.6f},{'uv'[k]},{c:.6f}\n" for a, b, k, c in zip(x, y, kinds, z, strict=True)]
    Path(path).write_text("x,y,kind,z\n" + "".join(lines))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of y, kind and z given x, of 160 held-out rows, in a folder with its data."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("conditional")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_table("d.csv")
        call(f"train --data {folder}/d.csv --conditions x --run-dir run {QUICK}".split())
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def measured(run: Path, **request: Any) -> dict[str, Any]:
    file = run / "evaluation/eval-a.json"
    _, result = evaluate(run, EvalConfig(output=file, num_samples=40, num_steps=(1,), **request))
    return result


def stored(spread: float, shift: float = 0.0, columns: int = 2) -> dict[str, Any]:
    """Figures of draws of ``spread`` times the true deviation."""
    rng = np.random.default_rng(1)
    true, draws = rng.normal(size=(300, columns)), spread * rng.normal(size=(300, 39, columns)) + shift
    return summarise(true, draws, [f"column {i}" for i in range(columns)])


def put(run: Path, found: dict[str, Any], *, name: str = "b") -> None:
    """Store calibration as a result of ``advect eval``."""
    result = {**read_result(run / "evaluation/eval-a.json"), "flow": {"calibration": found}}
    (run / f"evaluation/eval-{name}.json").write_text(json.dumps(result))


def write_result(run: Path) -> None:
    """A result of ``advect eval`` without calibration, older than all others."""
    measured(run, metrics=("straightness",))
    os.utime(run / "evaluation/eval-a.json", (1, 1))


def told(run: Path) -> Any:
    """The doctor's finding on calibration."""
    (finding,) = [f for f in examine_run(run) if "draws a row" in f.figures]
    return finding


def test_eval_has_the_figures_of_the_flow_and_the_page_shows_them(run: Path) -> None:
    assert "calibration" not in measured(run)["flow"]  # costs as much as all usual metrics
    result = measured(run, metrics=("frechet", "calibration"))
    found = result["flow"]["calibration"]
    assert found.items() <= read_result(run / "evaluation/eval-a.json")["flow"]["calibration"].items()
    assert (found["rows"], found["draws"], found["columns"], found["left_out"]) == (160, 39, ["y", "z"], [])
    flow, data = library.load(run), build_dataset(parse_config(run / "config.yaml")[1].data)
    rows = data.held_out.fetch(subsample(160, 160, 0).numpy())
    true = flow.transform.inverse(rows.x1)
    each = lambda r: (
        true[r.start : r.stop],
        encoded({name: value[r.start : r.stop] for name, value in (rows.cond or {}).items()}),
    )
    # By the sampler asked for, not the run's; drawn in parts, rows are the same.
    parts = [draws_given(flow, 160, range(i, i + 40), each, steps=1) for i in range(0, 160, 40)]
    y, draws = (np.concatenate([part[name].numpy() for part in parts]) for name in ("true", "draws"))
    assert np.array_equal(y, true[:, [0, 2]].double().numpy())
    assert found["crps"] == pytest.approx(crps(y, draws).mean(0), rel=1e-5)
    assert found["sharpness"] == pytest.approx(sharpness(draws, 0.9), rel=1e-5)
    lines = flow_lines(result)
    assert f"calibration, 39 draws a row: {found['sentence']}" in lines
    assert any(line.startswith("  z: CRPS ") for line in lines)
    page = write_report(run).read_text()
    assert '<section id="calibration">' in page and "160 held-out rows, 39 draws" in page
    assert "cannot be shown" not in page
    assert found["sentence"] in page and page.count('aria-label="calibration"') == 1


def test_a_condition_of_all_draws_contradicts_those_of_the_rows(run: Path) -> None:
    with pytest.raises(UserError, match="leave --cond out"):
        measured(run, metrics=("calibration",), cond=("x=1",))


def test_each_row_is_drawn_given_its_own_condition() -> None:
    class Echo:
        modality = SimpleNamespace(categorical=None)

        def sample(self, n: int, *, cond: Any, seed: int, rows: range) -> Any:
            assert n == 12 * 39
            return SimpleNamespace(x=cond["x"].values[rows.start : rows.stop])

    x = torch.arange(12.0)[:, None]
    data = lambda rows: (x[rows.start : rows.stop], encoded({"x": x[rows.start : rows.stop]}))
    found = draws_given(Echo(), 12, range(5, 9), data)
    assert found["true"].tolist() == [[5], [6], [7], [8]]
    assert torch.equal(found["draws"], found["true"][:, None].expand(4, 39, 1))


def test_a_report_measures_it_too_with_few_evaluations(run: Path) -> None:
    data = build_dataset(parse_config(run / "config.yaml")[1].data)
    found = measure_quality(library.load(run), data, run / "evaluation", samples=60, nfes=(1, 2))["calibration"]
    assert found["by"] == "midpoint, 8 evaluations a draw" and (found["rows"], found["columns"]) == (160, ["y", "z"])
    assert told(run).figures["measured by"] == "advect report, by midpoint, 8 evaluations a draw"
    page = write_report(run).read_text()
    assert "measured by advect report, by midpoint" in page and "cannot be shown" not in page


@pytest.mark.parametrize(
    ("found", "level", "title"),
    [
        (stored(0.6), "problem", "over-confident"),
        (stored(0.8), "note", "over-confident"),
        (stored(1.5), "note", "under-confident"),
        (stored(1.0, shift=0.5), "note", "biased"),
        (stored(1.0), "ok", "are calibrated as far as"),
    ],
)
def test_the_doctor_tells_the_newest_result(run: Path, found: Any, level: str, title: str) -> None:
    write_result(run)
    put(run, found)
    finding = told(run)
    assert finding.level == level and title in finding.title and finding.advice == found["advice"]
    share = finding.figures[f"90% intervals of {found['columns'][found['column']]} cover"]
    assert share == found["coverage"][found["column"]] and finding.figures["measured by"] == "advect eval"


def test_figures_that_are_not_those_of_the_columns_are_left_out_and_told(run: Path) -> None:
    write_result(run)
    for i, wrong in enumerate(({"coverage": [0.9]}, {"column": 2}, {"crps": ["much", 1.0]}, {"curves": None})):
        put(run, {**stored(0.6), **wrong}, name=f"b{i}")
    page = write_report(run).read_text()
    assert all(f"eval-b{i}.json" in page for i in range(3)) and "figures are not those of the columns" in page
    assert told(run).level == "problem"  # the last needs no curves
    assert '<section id="calibration">' in page and 'aria-label="calibration"' not in page


def test_missing_values_leave_columns_out() -> None:
    rng = np.random.default_rng(0)
    true, draws = rng.normal(size=(120, 2)), rng.normal(size=(120, 39, 2))
    true[3, 0] = np.nan
    found = summarise(true, draws, ["a", "b"])
    assert (found["columns"], found["left_out"], len(found["crps"])) == (["b"], ["a"], 1)
    assert "  without a, which have missing or infinite values" in calibration_lines(found)
    true[:, 1] = np.inf
    found = summarise(true, draws, ["a", "b"])
    assert found["kind"] == "unknown" and found["columns"] == [] and "all columns have missing" in found["sentence"]
    assert calibration_lines(found)[0].endswith("missing or infinite values")


def test_columns_right_alone_but_not_together_are_miscalibrated() -> None:
    rng = np.random.default_rng(0)
    true, draws = rng.normal(size=(500, 1)).repeat(2, 1), rng.normal(size=(500, 39, 2))
    found = summarise(true, draws, ["a", "b"])
    assert found["kind"] == "miscalibrated" and "depend on each other" in found["sentence"]
    assert found["tarp"]["p_value"] < 0.01 and found["advice"]


def test_many_columns_and_strange_names_are_drawn(run: Path) -> None:
    write_result(run)
    found = stored(0.7, columns=9)
    found["columns"] = ["_a", "$x", "<b>", *"cdefgh"]
    put(run, found)
    page = write_report(run).read_text()
    assert "cannot be shown" not in page and "other columns" in page
    assert "<td>_a</td>" in page and "<td>&lt;b&gt;</td>" in page and "<td><b></td>" not in page


def test_data_without_such_conditions_or_with_few_rows_are_refused(advect: Callable[..., None]) -> None:
    write_table("d.csv", 150)
    advect(f"train --data d.csv --run-dir plain {QUICK}")
    with pytest.raises(UserError, match="needs data with a real-valued condition, and these have none"):
        measured(Path("plain"), metrics=("calibration",))
    advect(f"train --data d.csv --conditions x --run-dir few {QUICK}")
    with pytest.raises(UserError, match="columns of numbers, and 100 held-out rows or more"):
        measured(Path("few"), metrics=("calibration",))
