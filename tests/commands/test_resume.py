"""A run that was stopped or killed, and resumed, equals one that never was: bytes on disk."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.checkpoint.manifest import checkpoint_step, list_checkpoints
from advect.core.errors import UserError
from forked import ranks
from runs import assert_same_end, losses, newest_step, wait_for_step

SMALL = (
    "--model-channels 8 --batch-size 32 --num-epochs 3 --log-every 4 "
    "--sample-every 10 --num-samples 4 --sample-steps 2"
)
TINY = "--width 16 --batch-size 64 --log-every 5 --sample-every 20 --num-samples 8 --num-epochs 5"


def test_stopped_anywhere_and_resumed_equals_never_stopped(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir whole --max-steps 31", SMALL)
    for stop in (1, 28, 29):  # 28.1 steps are an epoch
        advect("train digits --run-dir", stop, "--max-steps", stop, SMALL)
        advect("train --resume-from", stop, "--max-steps 31")
        assert_same_end(Path("whole"), Path(str(stop)), 31)


def test_resuming_reaches_the_same_end_from_an_older_checkpoint_and_in_another_folder(
    advect: Callable[..., None],
) -> None:
    advect("train digits --run-dir whole --max-steps 30 --save-every 10 --keep-last 0", SMALL)
    advect("train --resume-from whole/checkpoints/step-00000010 --run-dir fork")
    assert not (Path("fork") / "checkpoints/step-00000010").exists()
    assert_same_end(Path("whole"), Path("fork"), 30, since=10)


def test_config_yaml_repeats_the_run(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir one --max-steps 9 --seed 5 --dropout 0.2", SMALL)
    advect("train --config one/config.yaml --run-dir two")
    assert (Path("one") / "config.yaml").read_text() == (Path("two") / "config.yaml").read_text()
    assert_same_end(Path("one"), Path("two"), 9)


def test_threads_that_load_ahead_change_nothing(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir one --max-steps 9 --num-workers 0", SMALL)
    advect("train digits --run-dir two --max-steps 9 --num-workers 3", SMALL)
    assert_same_end(Path("one"), Path("two"), 9)


def test_float16_resumes_bit_for_bit_and_logs_its_scale(advect: Callable[..., None]) -> None:
    flags = (TINY, "--mixed-precision --half fp16")
    advect("train moons --run-dir whole --max-steps 25", *flags)
    advect("train moons --run-dir parts --max-steps 12", *flags)
    advect("train --resume-from parts --max-steps 25")
    assert_same_end(Path("whole"), Path("parts"), 25)
    rows = [json.loads(line) for line in (Path("whole") / "metrics.jsonl").read_text().splitlines()]
    assert [(r["loss_scale"], r["skipped_steps"]) for r in rows if "loss" in r] == [(65536.0, 0)] * 5
    kept = json.loads((Path("parts") / "checkpoints/step-00000025/state/run.json").read_text())["loss_scale"]
    assert kept == {"scale": 65536.0, "good": 25, "skipped": 0}


def test_accumulation_resumes_bit_for_bit_and_is_close_to_the_plain_run(advect: Callable[..., None]) -> None:
    advect("train moons --run-dir plain --max-steps 10", TINY)
    advect("train moons --run-dir whole --max-steps 10 --accumulate 3", TINY)
    advect("train moons --run-dir parts --max-steps 5 --accumulate 3", TINY)
    advect("train --resume-from parts --max-steps 10")
    assert_same_end(Path("whole"), Path("parts"), 10)
    assert losses(Path("plain"))[-1][1] == pytest.approx(losses(Path("whole"))[-1][1], rel=1e-4)


def test_activations_computed_again_change_no_bit(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir plain --max-steps 6 --dropout 0.2", SMALL)
    advect("train digits --run-dir again --max-steps 6 --dropout 0.2 --grad-checkpointing", SMALL)
    assert_same_end(Path("plain"), Path("again"), 6)
    with pytest.raises(UserError, match="--grad-checkpointing does nothing for --network mlp"):
        advect("train moons --run-dir moons --grad-checkpointing", TINY)


def test_muon_resumes_bit_for_bit_and_only_as_muon(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir whole --max-steps 14 --optimizer muon", SMALL)
    advect("train digits --run-dir parts --max-steps 7 --optimizer muon", SMALL)
    advect("train --resume-from parts --max-steps 14")
    assert_same_end(Path("whole"), Path("parts"), 14)
    with pytest.raises(UserError, match="was written by another optimiser"):
        advect("train --resume-from parts --optimizer adamw")


def test_another_seed_gives_another_run(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir one --max-steps 4 --seed 0", SMALL)
    advect("train digits --run-dir two --max-steps 4 --seed 1", SMALL)
    assert losses(Path("one"))[0][1] != losses(Path("two"))[0][1]


ENDLESS = f"train digits --run-dir run {SMALL} --num-epochs 1000 --save-every 5"


def stats(pid: int | None) -> list[str]:
    """What Linux says of each thread of a process; the third word is its state."""
    return [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again_and_resumed_equals_never_stopped(
    advect: Callable[..., None], tmp_path: Path, kills: int
) -> None:
    steps = 12 * kills
    flags = f"{SMALL} --num-epochs 100 --max-steps {steps} --save-every 3"
    advect("train digits --run-dir whole", flags)
    words = f"train digits --run-dir killed {flags}"
    for i in range(kills):
        with ranks(1, words, cwd=tmp_path) as process:
            wait_for_step(process, tmp_path / "killed", newest_step(tmp_path / "killed") + 3)
            time.sleep(0.009 * (i % 7))  # a different moment of a step or of a checkpoint's writing each time
            process.kill()
            assert [rank.code for rank in process.wait()] == [-signal.SIGKILL]
        words = "train --resume-from killed"
    assert newest_step(tmp_path / "killed") >= 3 * kills
    advect("train --resume-from killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed", steps)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_line_to_resume(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with ranks(1, ENDLESS, cwd=tmp_path) as process:
        wait_for_step(process, tmp_path / "run", 5)
        process.signal(number)
        (ended,) = process.wait()
    assert ended.code == code
    assert "advect train --resume-from run" in ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err
    newest = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    last = json.loads((newest / "state/run.json").read_text())
    assert (tmp_path / "run/checkpoints/latest").read_text().strip() == newest.name
    assert last["step"] == int(newest.name.split("-")[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")
def test_a_run_folder_in_use_is_refused_before_anything_changes(advect: Callable[..., None], tmp_path: Path) -> None:
    with ranks(1, ENDLESS, cwd=tmp_path) as process:
        wait_for_step(process, tmp_path / "run", 5)
        process.signal(signal.SIGSTOP)
        pid = process.processes[0].pid
        while {line.split()[2] for line in stats(pid)} != {"T"}:  # until all of its threads stand still
            time.sleep(0.01)
        before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
        with pytest.raises(UserError, match=f"--run-dir run is in use by process {pid} on .*; wait for it, end it"):
            advect("train --resume-from run")
        assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before
    steps = newest_step(tmp_path / "run") + 1
    advect("train --resume-from run --max-steps", steps)
    assert newest_step(tmp_path / "run") == steps


def test_resuming_with_another_network_says_what_differs(advect: Callable[..., None], digits_run: Path) -> None:
    with pytest.raises(UserError, match="model_channels was 8 there and is 16 here"):
        advect("train --resume-from", digits_run, "--model-channels 16 --run-dir new")
    assert not Path("new").exists()


def test_resuming_with_another_data_shape_says_what_differs(advect: Callable[..., None], digits_run: Path) -> None:
    with pytest.raises(UserError, match=r"data of shape \(1, 8, 8\) .* these have shape \(2,\)"):
        advect("train moons --resume-from", digits_run, "--run-dir new")
    assert not Path("new").exists()


def test_an_underscore_in_a_flag_means_a_dash(advect: Callable[..., None]) -> None:
    advect("train digits --run-dir run --max-steps 2 --seed 7", SMALL)
    advect("train --resume_from run --max_steps=3")
    assert "seed: 7" in Path("run/config.yaml").read_text()
    assert Path("run/checkpoints/step-00000003").is_dir()


def test_a_finished_run_resumes_to_its_own_end(advect: Callable[..., None]) -> None:
    advect("train moons --width 16 --batch-size 5000 --num-epochs 2 --run-dir run --sample-every 0")
    before = sorted(p.name for p in Path("run/checkpoints").iterdir())
    advect("train --resume-from run")
    assert sorted(p.name for p in Path("run/checkpoints").iterdir()) == before


def test_the_line_to_go_on_is_a_command_that_goes_on(
    advect: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    advect("train digits --run-dir few --max-steps 3", SMALL)
    line = "advect train --resume-from few --max-steps 6"
    assert f"stopped by max-steps; to go on, type: {line}\n" in capsys.readouterr().out
    advect("train --resume-from few --max-steps 2")
    out = capsys.readouterr().out
    assert "nothing is left to train: step 3 is done, and --max-steps ends the run at step 2" in out and line in out
    advect(line.removeprefix("advect "))
    assert list_checkpoints(Path("few/checkpoints"))[-1].name == "step-00000006"
    advect("train --resume-from few --max-steps 100 --max-minutes 0.001")
    assert "stopped by max-minutes; to go on, type: advect train --resume-from few\n" in capsys.readouterr().out


def test_transport_across_labels_is_told(advect: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    for run, coupling, told in (("a", "ot", True), ("b", "conditional-ot", False)):
        advect("train digits --run-dir", run, "--max-steps 1 --coupling", coupling, SMALL)
        assert ("biases samples given a condition" in capsys.readouterr().out) == told


KEEP = "--keep-epochs --save-epochs 1 --keep-last 1 --save-every 10"


def test_checkpoints_of_epochs_are_kept_through_kills_and_found_by_their_epoch(
    advect: Callable[..., None],
) -> None:
    """The run is stopped within its third epoch, of 27.8 steps, and goes on from there or a kill in its second."""
    flags = "--width 16 --batch-size 360 --num-epochs 4 --log-every 5 --sample-every 0 --num-samples 8"
    advect("train moons --run-dir run --max-steps 75 --posthoc-ema --posthoc-every 1", flags, KEEP)
    ends = [math.ceil(epoch * 10_000 / 360) for epoch in (1, 2, 3, 4)]
    assert steps_of(Path("run")) == [*ends[:2], 75]
    shutil.copytree("run", "killed")
    for leftover in ("step-00000075", f"step-{ends[1]:08d}"):  # as a kill while the second epoch's was written
        shutil.rmtree(Path("killed/checkpoints") / leftover)
    Path("killed/checkpoints/latest").write_text(f"step-{ends[0]:08d}\n")
    for run in ("run", "killed"):
        advect(f"train --resume-from {run} --max-steps None")
        assert steps_of(Path(run)) == ends
    assert_same_end(Path("run"), Path("killed"), ends[3])
    advect("train --resume-from run/checkpoints/checkpoint_epoch_2 --run-dir fork")
    assert steps_of(Path("fork")) == ends[2:]
    for command in ("sample run --num-samples 4", "report run --num-samples 20 --nfes 2", "ema run --length 0.1"):
        advect(command, "--checkpoint epoch-3")
    assert json.loads(Path("run/generated/seed-0/samples.json").read_text())["checkpoint"] == f"step-{ends[2]:08d}"
    assert json.loads(Path("run/evaluation/quality.json").read_text())["step"] == ends[2]
    assert f"the checkpoint of step {ends[2]:,}" in Path("run/report.html").read_text()
    assert Path(f"run/ema/length-0.1-step-{ends[2]:08d}.safetensors").is_file()
    advect("eval run --num-samples 40 --num-steps 2 --metrics energy --checkpoint epoch-3 --output eval.json")
    assert json.loads(Path("eval.json").read_text())["subject"]["step"] == ends[2]
    with pytest.raises(UserError, match=r"has no checkpoint of epoch 9; there are those of epochs 1-4$"):
        advect("sample run --checkpoint epoch-9")


def steps_of(run: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(run / "checkpoints")]


def test_keeping_epochs_that_are_not_saved_is_a_mistake(advect: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="--keep-epochs does nothing with --save-epochs 0; give --save-epochs 1"):
        advect("train moons --keep-epochs --save-epochs 0")
