"""What was measured during training, in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advect.reporting import write_report
from advect.reporting.plots import eval_chart
from advect.reporting.run_folder import read_run


def add(run: Path, *rows: dict) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(step: int, distance: float, **others: object) -> dict:
    protocol = {"eval_samples": 2000, "eval_features": "pixel space"}
    return {"step": step, "eval_frechet": distance, "eval_frechet_floor": 0.5, **protocol, **others}


def test_the_report_has_the_curve_its_floor_and_the_checkpoint_that_is_kept(run: Path) -> None:
    add(run, row(50, 4.0), row(100, 1.5), row(150, 2.5))
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best").write_text('{"name": "step-00000100", "metric": "frechet", "value": 1.5}\n')
    page = write_report(run).read_text()
    assert "Samples against held-out data while it trained" in page
    assert (
        "Smallest at step 100: 1.5, where real training data score 0.5. 2000 samples a point, in pixel space." in page
    )
    assert (
        f"The checkpoint of step 100, the best by its Frechet distance, is kept: <code>{run}/checkpoints/best</code>"
        in page
    )
    assert page.count("stroke-dasharray") >= 1 and 'id="evaluations' in page


def test_points_of_another_protocol_are_left_out(run: Path) -> None:
    add(run, row(50, 0.1, eval_samples=100), row(100, 1.5), row(150, 2.5))
    assert "Smallest at step 100" in write_report(run).read_text()


def test_without_measurements_there_is_nothing(run: Path) -> None:
    assert "Samples against held-out data" not in write_report(run).read_text()
    assert read_run(run).evals == []


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3}', '{"name": "step-x"}', "step-00000100\n"])
def test_a_damaged_best_is_left_out(run: Path, text: str) -> None:
    add(run, row(50, 4.0))
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best").write_text(text)
    page = write_report(run).read_text()
    assert "Smallest at step 50" in page and "is kept" not in page


def test_a_later_row_of_a_step_holds(run: Path) -> None:
    add(run, row(50, 4.0), row(50, 3.0))
    assert [r["eval_frechet"] for r in read_run(run).evals] == [3.0]


def test_the_chart_needs_no_floor() -> None:
    assert "stroke-dasharray" in eval_chart(([1, 2], [3.0, 1.0]), 0.5)
    assert "stroke-dasharray: 5" not in eval_chart(([1, 2], [3.0, 1.0]), None)
