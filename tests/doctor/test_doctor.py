"""``advect doctor`` on runs that were trained to be sick, and on one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from advect import load
from advect.core.errors import UserError
from advect.doctor.run import read_facts

SMALL = "--width 64 --batch-size 64 --log-every 10 --sample-every 50 --num-samples 20 --sample-steps 10"


@pytest.fixture
def doctor(advect: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict]]:
    """``doctor("runs/x")`` is the exit status and the findings of ``advect doctor runs/x --json``."""

    def call(*words: object) -> tuple[int, dict]:
        capsys.readouterr()
        code = 0
        try:
            advect("doctor", *words, "--json")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, json.loads(capsys.readouterr().out)

    return call


def titles(found: dict, level: str) -> str:
    return " ".join(f["title"] for f in found["findings"] if f["level"] == level)


def test_a_damaged_file_of_cells_is_told_whatever_its_libraries_raise(tmp_path, monkeypatch) -> None:
    h5py, cells = pytest.importorskip("h5py"), pytest.importorskip("advect.doctor.formats")
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["X"] = np.ones((2, 2), np.float32)

    def damaged(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to synchronously check link existence (bad heap free list)")

    monkeypatch.setattr(cells, "stored_matrix", damaged)
    with pytest.raises(UserError, match=r"a\.h5ad is not an \.h5ad file, or a damaged one \(Unable .*free list\)"):
        cells.read_cells(tmp_path / "a.h5ad", 10)


def test_a_healthy_run_is_found_healthy(advect: Callable[..., None], doctor: Callable) -> None:
    advect(
        "train moons --max-steps 800 --run-dir well --width 128 --log-every 20 --sample-every 200 --num-samples 20",
        "--ema-decay 0.99",
    )
    code, found = doctor("well", "--samples", 1000)
    assert code == 0 and found["healthy"], titles(found, "problem")
    said = titles(found, "ok")
    assert "The loss has fallen" in said and "did all the steps" in said and "no copies" in said
    assert "as varied as the data" in said


def test_a_run_of_planned_steps_is_not_said_to_have_stopped(advect: Callable[..., None], doctor: Callable) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(117, 2)))
    words = "--width 8 --depth 1 --sample-every 0 --early-stopping no --batch-size 8"
    advect(f"train --data x.npy --run-dir done --num-epochs 23.0093 {words}")  # 302 steps, of 13 to 14 an epoch
    state = json.loads(Path("done/environment.json").read_text())
    assert state["planned_steps"] == int((Path("done/checkpoints/latest").read_text())[5:])
    assert "did all the steps" in titles(doctor("done")[1], "ok")
    advect(f"train --data x.npy --run-dir cut --num-epochs 50 --max-steps 20 {words}")
    (Path("cut/config.yaml")).write_text(
        Path("cut/config.yaml").read_text().replace("max_steps: 20", "max_steps: null")
    )
    facts = json.loads(Path("cut/environment.json").read_text())
    assert read_facts(Path("cut")).planned == facts["planned_steps"] > 600


def test_a_run_without_a_useful_learning_rate_is_found_flat(advect: Callable[..., None], doctor: Callable) -> None:
    advect(f"train moons --max-steps 300 --run-dir flat --learning-rate 1e-12 {SMALL}")
    code, found = doctor("flat")
    assert code == 1 and not found["healthy"]
    flat = next(f for f in found["findings"] if "has not fallen" in f["title"])
    assert flat["figures"]["learning_rate"] == 1e-12
    assert "raise --learning-rate" in flat["advice"]


def test_a_run_that_blows_up_is_found_out(advect: Callable[..., None], doctor: Callable) -> None:
    with pytest.raises(UserError, match="not finite"):
        advect(f"train moons --max-steps 200 --run-dir wild --learning-rate 1000 --lr-warmup-steps 0 {SMALL}")
    code, found = doctor("wild")
    assert code == 1
    assert "learning rate is far too high" in titles(found, "problem")


@pytest.mark.slow
def test_a_run_that_learns_few_rows_by_heart_is_found_out(advect: Callable[..., None], doctor: Callable) -> None:
    np.save("few.npy", np.random.default_rng(0).normal(size=(64, 8)))
    advect(
        "train --data few.npy --held-out 0.5 --run-dir knows --num-epochs 700 --batch-size 32 --learning-rate 5e-3",
        "--lr-warmup-steps 50 --width 128 --depth 2 --ema-decay 0.98 --log-every 50 --sample-every 100",
        "--save-epochs 1000 --num-samples 4 --sample-steps 10",
    )
    code, found = doctor("knows", "--samples", 200)
    assert code == 1
    fits = next(f for f in found["findings"] if f["title"].startswith("The run over-fits"))
    figures = fits["figures"]
    rows = [json.loads(line) for line in Path("knows/metrics.jsonl").read_text().splitlines()]
    held = {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}
    assert held[figures["at step"]] == figures["lowest held-out loss"] == min(held.values())
    assert figures["held-out loss at the end"] > 1.1 * figures["lowest held-out loss"]
    assert figures["training loss at the end"] < figures["training loss then"]
    copies = next(f for f in found["findings"] if f["title"].startswith("The run memorises"))
    assert copies["figures"]["closer to a training row than 99% of held-out rows"] > 0.1
    assert not any("train longer" in f["advice"] for f in found["findings"])


def test_mistakes_exit_with_a_sentence(advect: Callable[..., None], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    with pytest.raises(UserError, match="nowhere does not exist"):
        advect("doctor nowhere")
    with pytest.raises(UserError, match="does not exist"):
        advect("doctor --data nowhere")
    with pytest.raises(UserError, match="is not a run folder; for data, type: advect doctor --data"):
        advect("doctor", tmp_path)
    with pytest.raises(UserError, match="preset digits brings its own data"):
        advect("doctor digits --data", tmp_path / "x.npy")
    with pytest.raises(UserError, match="give both or neither"):
        advect("doctor runs/x --data x")
    with pytest.raises(UserError, match="--colour is not a flag of advect train arrays"):
        advect("doctor --colour red --data", tmp_path / "x.npy")
    with pytest.raises(UserError, match="--samples 9 is for a run"):
        advect("doctor moons --samples 9")


def test_the_evaluations_of_a_runs_sampler_are_those_made(advect: Callable[..., None], doctor: Callable) -> None:
    advect(
        "train moons --run-dir r --max-steps 2 --path vp --solver euler --sample-steps 4",
        "--width 16 --sample-every 0",
    )
    (few,) = [f for f in doctor("r")[1]["findings"] if "few evaluations" in f["title"]]
    assert few["figures"]["evaluations"] == load("r").sample(2).nfe == 6


def test_people_read_the_same_findings(advect: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    advect("doctor moons --look 100 --batch-size 32")
    said = capsys.readouterr().out
    assert "ok       The configuration fits the memory" in said
    assert "batch size 32" in said and said.rstrip().splitlines()[-1].startswith("nothing is wrong: 0 problems")
