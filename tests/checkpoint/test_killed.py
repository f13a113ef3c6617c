"""Runs of one and two processes killed with SIGKILL at chosen moments and at random ones, and resumed: bytes on disk.

A fault is planted in the process itself: it kills at the n-th time that it comes to a place.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.distributed.parallel import Kind
from forked import advect_ranks, ranks
from processes import advect_command, environment
from runs import die, end_of, kill_at, newest_step

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")

STEPS = 24
SMALL = (
    "train moons --width 16 --batch-size 32 --lr-warmup-steps 4 --log-every 4 --sample-every 10 --num-samples 8"
    f" --sample-steps 2 --save-every 3 --keep-last 2 --num-epochs 100 --max-steps {STEPS} --resume auto"
)
PLACES = ("step", "write", "rename", "save")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Kind], dict[str, object]]:
    """``whole(2, "ddp")``: the end of a run that nobody disturbed."""
    ends: dict[tuple[int, Kind], dict[str, object]] = {}

    def end(n: int, kind: Kind) -> dict[str, object]:
        if (n, kind) not in ends:
            folder = tmp_path_factory.mktemp("whole")
            advect_ranks(n, f"{SMALL} --run-dir whole --parallel {kind}", cwd=folder)
            ends[n, kind] = end_of(folder / "whole")
        return ends[n, kind]

    return end


slow = pytest.mark.slow
KILLS = [
    pytest.param(1, "none", [("write", 9), ("rename", 4), ("step", 5)], id="1"),
    pytest.param(2, "ddp", [("save", 2), ("rename", 4), ("step", 4)], id="ddp"),
    pytest.param(1, "none", [(p, n) for n in (2, 5, 7) for p in PLACES], marks=slow, id="1-12-kills"),
    pytest.param(2, "ddp", [(p, n) for n in (1, 3, 6) for p in PLACES], marks=slow, id="ddp-12-kills"),
    pytest.param(2, "fsdp", [(p, n) for n in (1, 4, 6) for p in PLACES], marks=slow, id="fsdp-12-kills"),
]


@pytest.mark.parametrize(("n", "kind", "kills"), KILLS)
def test_killed_at_each_place_and_resumed_equals_never_killed(
    tmp_path: Path, whole: Callable, n: int, kind: Kind, kills: list[tuple[str, int]]
) -> None:
    words = f"{SMALL} --run-dir run --parallel {kind}"
    died = 0
    for i, (place, nth) in enumerate(kills):
        victim = i % n if kind == "fsdp" and place != "rename" else 0  # of whole states the first process writes
        with ranks(n, words, cwd=tmp_path, before=kill_at, arguments=(victim, place, nth)) as run:
            codes = [rank.code for rank in run.wait()]
        if any(codes):  # else it came to its end before
            died += 1
            assert codes == [-signal.SIGKILL if rank == victim else 75 for rank in range(n)]
    assert died >= min(3, len(kills))
    advect_ranks(n, words, cwd=tmp_path)
    assert end_of(tmp_path / "run") == whole(n, kind)
    assert not [*(tmp_path / "run").rglob("*.partial"), *(tmp_path / "run").rglob("*.old")]


def killed_before_a_picture(step: int) -> None:
    """Have the process killed with the checkpoint and the metrics of a step written, and its picture not."""
    from advect.reporting import sample_grids

    real = sample_grids.save_png

    def dying(image: object, path: Path) -> None:
        if path.stem == f"step-{step:08d}":
            while newest_step(path.parents[1]) < step:
                time.sleep(0.01)
            die()
        real(image, path)

    sample_grids.save_png = dying


def test_killed_before_a_picture_and_resumed_no_row_is_there_twice(tmp_path: Path, whole: Callable) -> None:
    words = f"{SMALL} --run-dir run --parallel none"
    advect_ranks(1, words, cwd=tmp_path, before=killed_before_a_picture, arguments=(STEPS,), code=-signal.SIGKILL)
    advect_ranks(1, words, cwd=tmp_path)
    assert end_of(tmp_path / "run") == whole(1, "none")


@slow
@pytest.mark.parametrize(("n", "kind"), [(1, "none"), (2, "ddp"), (2, "fsdp")])
def test_all_killed_at_random_moments_and_resumed_equals_never_killed(
    tmp_path: Path, whole: Callable, n: int, kind: Kind
) -> None:
    words = f"{SMALL} --run-dir run --parallel {kind}"
    draw = random.Random(n)
    for _ in range(8):
        before = newest_step(tmp_path / "run")
        with ranks(n, words, cwd=tmp_path) as run:
            while run.alive() and newest_step(tmp_path / "run") == before < STEPS:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1))
            run.kill()
    advect_ranks(n, words, cwd=tmp_path)
    assert end_of(tmp_path / "run") == whole(n, kind)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("ddp", "step"), *(pytest.param("fsdp", place, marks=slow) for place in PLACES)],
)
def test_a_rank_killed_ends_the_other_with_one_line_and_no_time_out(tmp_path: Path, kind: Kind, place: str) -> None:
    words = f"{SMALL} --run-dir run --parallel {kind}"
    victim = 0 if place == "rename" else 1
    with ranks(2, words, cwd=tmp_path, before=kill_at, arguments=(victim, place, 2)) as run:
        ended = run.wait(30)  # an exchange would wait for ten minutes
    assert (ended[victim].code, ended[1 - victim].code) == (-signal.SIGKILL, 75)
    told = [line for line in ended[1 - victim].err.splitlines() if "step" not in line]
    assert len(told) == 1 and "lost the others, as one has failed" in told[0]


@slow
def test_under_nproc_a_rank_killed_ends_the_run_and_is_named(tmp_path: Path) -> None:
    words = advect_command(f"{SMALL} --run-dir run --nproc 2 --max-steps 100000".replace("--sample-every 10", ""))
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True) as launcher:
        while launcher.poll() is None and newest_step(tmp_path / "run") < 3:
            time.sleep(0.01)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        (victim,) = (pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(int(victim), signal.SIGKILL)
        _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert err.endswith("advect: rank 1 was ended by SIGKILL; this is often a lack of memory\n")
    assert "Traceback" not in err
    advect_ranks(2, f"{SMALL} --run-dir run --max-steps {newest_step(tmp_path / 'run') + 1}", cwd=tmp_path)
