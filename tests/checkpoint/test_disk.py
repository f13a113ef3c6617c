"""Disks that are full or read-only: real file systems in memory, small ones, mounted for a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.checkpoint.manifest import list_checkpoints, verify_checkpoint
from forked import advect_ranks, ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts tmpfs, forks processes")

SMALL = (
    "train moons --width 128 --batch-size 32 --lr-warmup-steps 4 --sample-every 0 --num-epochs 100 --max-steps 24"
    " --keep-last 0 --run-dir disk/run --resume auto"
)


def fill() -> None:
    """Leave not a byte on the disk."""
    with open("disk/filler", "ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def fill_at(step: int) -> None:
    """Have the first process fill the disk within a step."""
    from advect.training.step import Step

    real = Step.take

    def take(self: Step, loss, inputs, lr: float, observe=None):
        if int(os.environ.get("RANK", 0)) == 0 and self.state.progress.step + 1 == step:
            fill()
        return real(self, loss, inputs, lr, observe)

    Step.take = take


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*.partial"), *folder.rglob("*.old")]


def the_sentence(err: str) -> str:
    told = [line for line in err.splitlines() if not line.startswith("step ")]
    assert len(told) == 1, err
    return told[0]


@pytest.mark.parametrize(
    ("n", "kind"), [(1, "none"), *(pytest.param(2, kind, marks=pytest.mark.slow) for kind in ("ddp", "fsdp"))]
)
def test_a_checkpoint_that_does_not_fit_leaves_those_before_whole(tmp_path: Path, disk: Callable, n, kind) -> None:
    place = disk("size=2m")
    call = f"{SMALL} --parallel {kind} --save-every 2 --log-every 100"
    first, *others = advect_ranks(n, call, cwd=tmp_path, code=2)
    whole = list_checkpoints(place / "run/checkpoints")
    told = the_sentence(first.err)
    last = whole[-1].relative_to(tmp_path)
    assert f"not be written to disk/run/checkpoints: the disk is full; the last whole checkpoint is {last}; " in told
    assert told.endswith("free some space, or lower --keep-last, and go on with --resume-from disk/run")
    assert all(rank.err == "" for rank in others)
    assert whole and [verify_checkpoint(path)["step"] for path in whole] == list(range(2, 2 * len(whole) + 1, 2))
    assert leftovers(place) == []
    disk("size=40m")
    advect_ranks(n, call, cwd=tmp_path)
    whole = list_checkpoints(place / "run/checkpoints")
    assert [verify_checkpoint(path)["step"] for path in whole] == list(range(2, 25, 2))


@pytest.mark.parametrize(
    ("n", "logs"),
    [
        (1, "--log-every 1"),
        pytest.param(1, "--log-every 12 --sample-every 12 --num-samples 8 --sample-steps 1", marks=pytest.mark.slow),
        pytest.param(2, "--log-every 1", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_is_full_for_a_row_of_metrics_ends_the_run_in_a_sentence(tmp_path: Path, disk, n, logs) -> None:
    place = disk("size=20m")
    call = f"{SMALL} {logs} --save-every 5"
    words = {"cwd": tmp_path, "before": fill_at, "arguments": (12,)}
    if n == 1:
        (ended,) = advect_ranks(1, call, code=2, **words)
        told = the_sentence(ended.err)
    else:
        with ranks(n, call, **words) as run:
            first, second = run.wait()
        assert (first.code, second.code) == (2, 75)
        told = the_sentence(first.err)
    assert told == (
        "advect: disk/run/metrics.jsonl could not be written: the disk is full; the last whole checkpoint is"
        " disk/run/checkpoints/step-00000010; free some space, and go on with --run-dir disk/run --resume auto"
    )
    assert leftovers(place) == []
    for path in list_checkpoints(place / "run/checkpoints"):
        verify_checkpoint(path)
    (place / "filler").unlink()
    advect_ranks(n, call, cwd=tmp_path)


def test_a_disk_that_is_full_from_the_start_is_told_in_a_sentence(
    tmp_path: Path, disk: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk("size=1m")
    (tmp_path / "disk/run").mkdir()
    monkeypatch.chdir(tmp_path)
    fill()
    (ended,) = advect_ranks(1, SMALL, cwd=tmp_path, code=2)
    assert the_sentence(ended.err) == (
        "advect: disk/run/config.yaml could not be written: the disk is full; there is no checkpoint; free some space,"
        " and go on with --run-dir disk/run --resume auto"
    )


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_read_only_disk_is_told_in_a_sentence(tmp_path: Path, disk: Callable, n: int) -> None:
    disk("size=20m")
    advect_ranks(n, SMALL.replace("24", "4"), cwd=tmp_path)
    disk("ro")
    for call in (SMALL, SMALL.replace("disk/run", "disk/new")):
        first, *others = advect_ranks(n, call, cwd=tmp_path, code=2)
        where = call.split("--run-dir ")[1].split()[0]
        assert the_sentence(first.err) == (
            f"advect: --run-dir {where} cannot be written to (Read-only file system); choose a folder of your own"
        )
        assert all(rank.err == "" for rank in others)
