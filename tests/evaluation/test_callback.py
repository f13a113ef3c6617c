"""Evaluation while a run trains, and its best checkpoint: rows, curves and bytes on disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import advect as package
from advect.checkpoint.manifest import list_checkpoints
from advect.commands.evaluate import evaluate
from advect.core.errors import UserError
from advect.evaluation.protocol import EvalConfig
from forked import advect_ranks, ranks
from own_data import cells, table
from runs import NAN, die, end_of, plant

SMALL = "train moons --width 16 --batch-size 64 --sample-every 0 --sample-steps 4 --eval-samples 200"
MEASURED = "--eval-every 20 --keep-best frechet"
DIVERGING = f"{SMALL} --no-use-ema --learning-rate 0.2 --lr-warmup-steps 120 --max-steps 100 {MEASURED}"
SHORT = (
    "train moons --width 16 --batch-size 32 --learning-rate 3e-3 --lr-warmup-steps 4 --ema-decay 0.5 --log-every 4"
    " --sample-every 0 --sample-steps 2 --eval-every 5 --eval-samples 64 --keep-best frechet --keep-last 1"
    " --num-epochs 100 --max-steps 24"
)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")


def rows(run: Path | str, name: str = "eval_frechet") -> dict[int, dict]:
    """The rows that have this number, by step; none comes twice."""
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if name in line]
    assert len({row["step"] for row in found}) == len(found)
    return {row["step"]: row for row in found}


def best(run: Path | str) -> dict:
    return json.loads(Path(run, "checkpoints/best").read_text())


def kept(run: Path | str) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(Path(run, "checkpoints"))]


def smallest(run: Path | str, name: str = "eval_frechet") -> int:
    return min(rows(run, name).values(), key=lambda row: row[name])["step"]


def test_a_run_that_gets_worse_again_keeps_its_best_beside_its_last(
    advect: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    advect(f"{DIVERGING} --run-dir run --save-every 10 --keep-last 1")
    found = {step: row["eval_frechet"] for step, row in rows("run").items()}
    assert list(found) == [20, 40, 60, 80, 100]
    assert found[40] < found[20] and found[100] > 3 * found[40]
    assert kept("run") == [40, 100]
    assert best("run") == {"name": "step-00000040", "metric": "frechet", "value": found[40]}
    assert Path("run/checkpoints/latest").read_text() == "step-00000100\n"
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("every 20 steps 200 samples are held against held-out data in data space") == 1
    told = [line for line in lines if line.startswith("step") and "against held-out data" in line]
    assert [line.startswith(f"step {step}, ") for line, step in zip(told, found, strict=True)] == [True] * 5
    assert [line.endswith("the best up to now") for line in told] == [True, True, False, False, False]

    chosen, last = package.load("run/checkpoints/best").net, package.load("run").net
    own = package.load("run/checkpoints/step-00000040").net.state_dict()
    assert all(torch.equal(x, own[name]) for name, x in chosen.state_dict().items())
    assert not all(torch.equal(x, own[name]) for name, x in last.state_dict().items())
    advect("sample run/checkpoints/best --num-samples 3 --num-steps 2")
    assert "run/checkpoints/best is the checkpoint of step 40\n" in capsys.readouterr().out
    assert json.loads(Path("run/generated/seed-0/samples.json").read_text())["checkpoint"] == "step-00000040"
    advect("train --resume-from run/checkpoints/best --max-steps 60")
    assert kept("run")[:2] == [40, 60] and best("run")["name"] == "step-00000040"


def test_a_checkpoint_is_written_of_the_very_step_that_is_better(advect: Callable[..., None]) -> None:
    advect(f"{DIVERGING} --run-dir run --save-every 0 --save-epochs 0")
    assert kept("run") == [20, 40, 100]
    progress = json.loads(Path("run/checkpoints/step-00000040/state/run.json").read_text())
    assert (progress["step"], progress["seen"]) == (40, 40 * 64)


def test_rows_and_curves_have_the_distances_and_their_floors(advect: Callable[..., None]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    advect(f"{SMALL} --run-dir run --eval-every 4 --max-steps 10 --log-every 5")
    assert best("run")["metric"] == "energy"
    found = rows("run")
    assert list(found) == [4, 8, 10]  # and at the end
    names = ["eval_frechet", "eval_frechet_se", "eval_energy", "eval_energy_se"]
    names += ["eval_frechet_floor", "eval_energy_floor"]
    for row in found.values():
        assert list(row) == ["step", *names, "eval_samples", "eval_features"]
        assert row["eval_samples"] == 200 and row["eval_features"] == "data space"
    assert len({row["eval_frechet_floor"] for row in found.values()}) == 1
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    for name in names:
        seen = {event.step: event.value for event in events.Scalars(name.replace("_", "/", 1))}
        assert seen == pytest.approx({step: row[name] for step, row in found.items()})
    flow, reference = package.load("run"), found[10]["eval_frechet"]
    assert flow.sampler.steps == 4 and reference > 0
    advect("report run --no-measure")
    page = Path("run/report.html").read_text()
    assert 'id="evaluations' in page and "200 samples a point, in data space" in page
    assert f"The checkpoint of step {smallest('run')}, the best by its energy distance, is kept" in page


def test_evaluating_changes_nothing_of_the_training(advect: Callable[..., None]) -> None:
    words = (
        "train digits --model-channels 8 --batch-size 32 --dropout 0.2 --log-every 3 --sample-every 0 --max-steps 10"
    )
    advect(f"{words} --run-dir plain")
    advect(f"{words} --run-dir measured --eval-every 3 --eval-samples 40 --sample-steps 2 --keep-best held-out-loss")
    folders = [Path(run, "checkpoints/step-00000010") for run in ("plain", "measured")]
    for ema in (False, True):
        one, two = (package.load(folder, ema=ema).net.state_dict() for folder in folders)
        assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = ({step: row["loss"] for step, row in rows(run, "loss").items()} for run in ("plain", "measured"))
    assert one == two and len(one) == 3
    assert list(rows("measured", "eval_kernel")) == [3, 6, 9, 10]


def series(place: Path) -> Path:
    rng = np.random.default_rng(0)
    lengths = 1 + np.arange(80) % 4
    np.savez(place / "series.npz", values=rng.normal(3, 2, (lengths.sum(), 2)), lengths=lengths)
    return place / "series.npz"


@pytest.mark.parametrize(
    ("make", "flags", "space"),
    [
        (table, "--scaling standard --width 8", "the table's scaled columns"),
        (cells, "--conditions type --width 8", "expression"),
        (cells, "--pca 4 --width 8", "the flow's 4 components of expression"),
        (cells, "--control drug=none --conditions drug --width 8", "expression"),
        (series, "--width 8 --depth 1 --heads 2", "the scaled channels"),
    ],
)
def test_data_of_each_kind_are_measured_in_units_that_can_be_compared(
    advect: Callable[..., None], tmp_path: Path, make: Callable[[Path], Path], flags: str, space: str
) -> None:
    few = "--held-out 0.4 --batch-size 8 --sample-every 0 --sample-steps 4 --eval-every 2 --max-steps 2 --seed 5"
    advect("train --data", make(tmp_path), few, flags, "--keep-best held-out-loss --run-dir run")
    (row,) = rows("run").values()
    assert row["eval_features"] == space and 20 <= row["eval_samples"] < 2000
    assert best("run") == {"name": "step-00000002", "metric": "held-out-loss", "value": row["eval_held_out_loss"]}
    request = EvalConfig(num_samples=row["eval_samples"], metrics=("frechet", "energy"), seed=5)
    _, result = evaluate(Path("run"), request)
    (point,) = result["points"]
    for name in ("frechet", "energy"):
        assert row[f"eval_{name}"] == pytest.approx(point["metrics"][name]["mean"], rel=1e-4)
        assert row[f"eval_{name}_floor"] == pytest.approx(result["floor"]["metrics"][name], rel=1e-4)


def test_a_flow_on_pairs_is_held_against_real_data(advect: Callable[..., None], moons_run: Path) -> None:
    words = (
        "--num-pairs 60 --pair-steps 1 --iterations 1 --no-measure --batch-size 32 --sample-every 0 --sample-steps 4"
    )
    advect("reflow", moons_run, words, "--output-dir out --max-steps 4 --eval-every 2 --eval-samples 300 --seed 0")
    run, step = Path("out/2-rectified"), int(best("out/2-rectified")["name"][5:])
    request = EvalConfig(num_samples=300, metrics=("frechet",), seed=0)
    _, result = evaluate(run / "checkpoints/best", request)
    assert result["subject"]["step"] == step == smallest(run)
    row = rows(run)[step]
    assert row["eval_samples"] == 300  # more than the pairs, and no more than the data
    assert row["eval_frechet_floor"] < 0.05
    (point,) = result["points"]
    assert row["eval_frechet"] == pytest.approx(point["metrics"]["frechet"]["mean"], rel=1e-5)


def test_the_held_out_loss_may_choose_the_best(advect: Callable[..., None]) -> None:
    advect(f"{DIVERGING} --run-dir run --keep-best held-out-loss --keep-last 1")
    found = {step: row["eval_held_out_loss"] for step, row in rows("run").items()}
    assert best("run")["metric"] == "held-out-loss" and best("run")["value"] == min(found.values())
    assert best("run")["name"] == f"step-{smallest('run', 'eval_held_out_loss'):08d}"
    watched = DIVERGING.replace("--sample-every 0", "--sample-every 20 --num-samples 8").replace(
        "--eval-every 20 --keep-best frechet", ""
    )
    advect(f"{watched.replace('--eval-samples 200', '')} --run-dir watched")
    assert {step: row["held_out_loss"] for step, row in rows("watched", "held_out_loss").items()} == found


def test_none_may_be_kept(advect: Callable[..., None]) -> None:
    advect(f"{DIVERGING} --run-dir run --keep-best None --keep-last 1")
    assert not Path("run/checkpoints/best").exists() and kept("run") == [100]
    assert len(rows("run")) == 5
    advect("train --resume-from run --max-steps 101")
    assert list(rows("run")) == [20, 40, 60, 80, 100, 101]


def test_resumed_it_knows_the_best_and_equals_a_run_that_never_stopped(advect: Callable[..., None]) -> None:
    advect(f"{DIVERGING} --run-dir whole --save-every 10 --keep-last 2")
    advect(f"{DIVERGING} --run-dir parts --save-every 10 --keep-last 2 --max-steps 60")
    assert best("parts")["name"] == "step-00000040"
    advect("train --resume-from parts --max-steps 100")
    assert kept("parts") == kept("whole") == [40, 90, 100]
    assert best("parts") == best("whole")
    assert rows("parts") == rows("whole")


def test_going_back_behind_the_best_forgets_it(advect: Callable[..., None]) -> None:
    advect(f"{DIVERGING} --run-dir run --save-every 10 --keep-last 0 --max-steps 60")
    assert best("run")["name"] == "step-00000040"
    advect("train --resume-from run/checkpoints/step-00000030 --max-steps 31 --learning-rate 1e-6")
    assert list(rows("run")) == [20, 31] and best("run")["name"] == f"step-{smallest('run'):08d}"


def test_values_of_another_protocol_are_not_compared(advect: Callable[..., None]) -> None:
    advect(f"{DIVERGING} --run-dir run --max-steps 40")
    advect("train --resume-from run --max-steps 60 --eval-samples 30")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row["eval_samples"]) for row in lines if "eval_samples" in row]
    assert found == [(20, 200), (40, 200), (40, 30), (60, 30)]  # step 40 is looked at again, to compare with
    values = {row["step"]: row["eval_frechet"] for row in lines if row.get("eval_samples") == 30}
    assert best("run") == {"name": "step-00000040", "metric": "frechet", "value": min(values.values())}


def kill_when(place: str, nth: int) -> None:
    """Have the process killed when it comes to a place for the nth time.

    "row": the row of an evaluation is written, and nothing is kept yet. "best": the file that names the best is
    written, under the name of none. "retain": it is there, and the one before it is not yet removed.
    """
    if int(os.environ.get("RANK", 0)) != 0:
        return
    from advect.checkpoint import async_writer as writer
    from advect.training.callbacks import CheckpointCallback

    left = [nth]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    def hook(event: str, arguments: tuple) -> None:
        if place == "best" and event == "os.rename" and ".best." in str(arguments[0]):
            count()

    save, retain = CheckpointCallback.save, writer.retain
    sys.addaudithook(hook)
    if place == "row":
        CheckpointCallback.save = lambda self, trainer: (count(), save(self, trainer))[1]
    if place == "retain":
        writer.retain = lambda *options: (count(), retain(*options))[1]


def all_of(run: Path) -> dict[str, object]:
    return {**end_of(run), "evals": rows(run), "best": best(run), "kept": kept(run)}


@linux
@pytest.mark.parametrize(
    ("n", "kind", "save"),
    [
        (1, "none", "--save-every 3"),
        pytest.param(1, "none", "--save-every 0", marks=pytest.mark.slow),
        pytest.param(2, "ddp", "--save-every 3", marks=pytest.mark.slow),
        pytest.param(2, "fsdp", "--save-every 0", marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_and_resumed_it_keeps_the_same_best(tmp_path: Path, n: int, kind: str, save: str) -> None:
    words = f"{SHORT} --parallel {kind} {save} --save-epochs 0 --resume auto"
    advect_ranks(n, f"{words} --run-dir whole", cwd=tmp_path)
    whole, died = all_of(tmp_path / "whole"), 0
    assert len(whole["evals"]) == 5  # type: ignore[arg-type]
    for place, nth in [("row", 2), ("best", 1), ("best", 2), ("retain", 3), ("row", 3), ("retain", 1)]:
        with ranks(n, f"{words} --run-dir run", cwd=tmp_path, before=kill_when, arguments=(place, nth)) as run:
            died += any(rank.code for rank in run.wait())
    assert died >= 3
    advect_ranks(n, f"{words} --run-dir run", cwd=tmp_path)
    assert all_of(tmp_path / "run") == whole
    assert not list((tmp_path / "run").rglob("*.partial"))


@linux
def test_a_best_outlives_a_rolling_back(tmp_path: Path) -> None:
    words = f"{SHORT} --save-every 3 --max-bad-steps 3 --run-dir run"
    advect_ranks(1, words, cwd=tmp_path, before=plant, arguments=(0, NAN, list(range(17, 24)), 2e-3))
    run = tmp_path / "run"
    assert any("rolled_back_from" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    assert list(rows(run)) == [5, 10, 15, 20, 24]
    assert best(run)["value"] == min(row["eval_frechet"] for row in rows(run).values())
    assert best(run)["name"] == f"step-{smallest(run):08d}" and smallest(run) in kept(run)


@linux
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_measure_what_one_does(tmp_path: Path, kind: str) -> None:
    words = SHORT.replace("--batch-size 32 ", "").replace("--max-steps 24", "--max-steps 10")
    advect_ranks(1, f"{words} --batch-size 64 --run-dir one", cwd=tmp_path)
    first, second = advect_ranks(2, f"{words} --batch-size 32 --run-dir two --parallel {kind}", cwd=tmp_path)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert list(one) == list(two) == [5, 10]
    for step in one:
        for name, value in one[step].items():
            assert two[step][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4))
    assert best(tmp_path / "one")["name"] == best(tmp_path / "two")["name"]
    assert "against held-out data" in first.out and "against held-out data" not in second.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("moons --eval-samples 500", "--eval-samples 500 does nothing without --eval-every"),
        ("moons --keep-best held-out-loss", "--keep-best held-out-loss does nothing without --eval-every"),
        ("digits --eval-features net.pt", r"--eval-features .*net\.pt does nothing without --eval-every"),
        (
            "moons --eval-every 5 --keep-best kernel",
            "--keep-best kernel is not measured of these data; take frechet or energy",
        ),
        ("moons --eval-every -1", "--eval-every must be at least 0"),
        ("moons --eval-every 5 --eval-samples 19", "--eval-samples must be at least 20"),
        ("digits --eval-every 5 --eval-features net.pt", r"features .*net\.pt is no file"),
        ("moons --eval-every 5 --eval-features net.pt", "is for images, and these are vector data"),
        ("--data few.npy --eval-every 5", "compares with 20 held-out samples or more, and these data have 9"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(advect: Callable[..., None], flags: str, message: str) -> None:
    np.save("few.npy", np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32))
    with pytest.raises(UserError, match=message):
        advect("train", flags, "--run-dir run")
    assert not Path("run").exists()
