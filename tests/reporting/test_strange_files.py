"""Side files of a run folder that strangers or a power cut left: the report is written, and names what it omits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advect.core.errors import UserError
from advect.evaluation.results import read_result
from advect.reporting import write_report

QUALITY: dict[str, Any] = {
    "format": 1,
    "seed": 0,
    "step": 40,
    "data": {"words": "points", "marginals": True, "shape": [2], "low": -1.0, "high": 1.0, "train": 100},
    "frechet": {
        "features": "values",
        "variance_kept": 1.0,
        "samples": 10,
        "held_out": 10,
        "floor": 0.1,
        "best": {"solver": "euler", "nfe": 1, "steps": 1, "distance": 0.2},
        "curves": {"euler": {"nfe": [1, 2], "steps": [1, 2], "distance": [0.3, 0.2]}},
    },
    "fidelity": {},
    "marginals": {},
    "memorisation": {
        "percentile": 0.01,
        "threshold": 0.1,
        "share_closer": 0.0,
        "median_sample": 1.0,
        "median_held_out": 1.0,
    },
}


@pytest.fixture
def run(moons_run: Path, tmp_path: Path) -> Path:
    """A run folder with an evaluation, without its checkpoints."""
    folder = tmp_path / "moons"
    shutil.copytree(moons_run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "quality.json").write_text(json.dumps(QUALITY))
    return folder


def test_the_fixture_is_shown_whole(run: Path) -> None:
    page = write_report(run).read_text()
    assert "reaches 0.2" in page and "left out" not in page


DEEP = '{"a": ' * 5000 + "1" + "}" * 5000


@pytest.mark.parametrize("name", ["environment.json", "evaluation/quality.json", "evaluation/eval-00000000.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", DEEP, '{"format": 1}', '{"format": 1, "seed": []}', "\x00"]
)
def test_json_of_another_form_is_left_out_with_a_note(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    page = write_report(run).read_text()
    shown = name == "environment.json" and text.startswith('{"format')
    assert not text or shown or "left out" in page


@pytest.mark.parametrize(
    "change",
    [
        lambda q: q["frechet"].update(curves={}),
        lambda q: q["frechet"]["curves"]["euler"].update(nfe=["many"]),
        lambda q: q["frechet"]["curves"]["euler"].update(nfe=[1]),
        lambda q: q["frechet"]["curves"]["euler"].update(nfe=[0, -1]),
        lambda q: q["frechet"].update(floor="low"),
        lambda q: q["frechet"]["best"].pop("distance"),
        lambda q: q["data"].update(shape=[]),
        lambda q: q["data"].update(shape=[10**30]),
        lambda q: q.update(fidelity={"label": {"share": 1}}),
        lambda q: q.update(memorisation=[]),
        lambda q: q.update(seed=None),
    ],
)
def test_numbers_of_another_form_are_left_out_with_a_note(run: Path, change: Callable[[Any], Any]) -> None:
    quality = json.loads(json.dumps(QUALITY))
    change(quality)
    (run / "evaluation" / "quality.json").write_text(json.dumps(quality))
    page = write_report(run).read_text()
    assert "left out" in page or "quality.json" not in page


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"step": "one"}', '{"step": 1e400}', '{"step": -1, "loss": 1}', '{"step": 3, "loss": "x"}', DEEP],
)
def test_lines_of_metrics_of_another_form_are_counted_and_left_out(run: Path, line: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n" + '{"step": 41, "loss": 1.0}\n')
    assert "of metrics.jsonl could not be read and are left out" in write_report(run).read_text()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "environment.json", "evaluation/quality.json"])
def test_a_pipe_in_their_place_is_named_and_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    assert f"{name} cannot be read (it is a pipe, socket or device" in write_report(run).read_text()


@pytest.mark.parametrize(
    "arrays",
    [{"t": np.zeros(3), "x": np.zeros(3)}, {"t": np.zeros(0), "x": np.zeros((0, 0, 0))}, {"t": np.array(["a"])}, {}],
)
def test_arrays_of_another_shape_are_left_out_with_a_note(run: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(run / "evaluation" / "trajectories.npz", **arrays)
    page = write_report(run).read_text()
    assert "trajectories.npz" in page and "left out" in page


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', DEEP])
def test_results_to_compare_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json") as error:
        read_result(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_a_page_has_no_control_characters_and_no_markup_of_the_data(run: Path) -> None:
    quality = json.loads(json.dumps(QUALITY))
    classes = [{"name": "<script>alert(1)</script>\x1b[2J\u202e", "samples": 5, "share": 1.0}]
    label = {"share": 1.0, "classifier_accuracy": 1.0, "fitted_on": 5, "checked_on": 5, "samples": 5}
    quality["fidelity"] = {"\x1b]0;x\x07": {**label, "by_class": classes}}
    (run / "evaluation" / "quality.json").write_text(json.dumps(quality))
    (run / "environment.json").write_text(json.dumps({"command": "advect \x1b[31m<b>", "device": "cpu\u202e"}))
    page = write_report(run).read_text()
    assert "\x1b" not in page and "\u202e" not in page and "\x07" not in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "<b>" not in page
