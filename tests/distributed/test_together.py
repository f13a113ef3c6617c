"""How several processes of one command end: real processes, by their exit codes and their words."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from advect.core.errors import UserError
from advect.distributed.comm import all_sum, current, sync_errors
from advect.distributed.launch import run_shared
from forked import ranks
from processes import Ended, environment


def mistake() -> None:
    with sync_errors():
        if current().rank == 1:
            raise UserError("--data-dir faces is missing")


def bug() -> None:
    all_sum(torch.ones(1))
    if current().rank == 1:
        raise TypeError("a bug")
    all_sum(torch.ones(1))


def stopped() -> None:
    print("stopped", current().rank)
    sys.exit(143)


def together(case: str) -> None:
    run_shared({"mistake": mistake, "bug": bug, "stopped": stopped}[case])


def ended(case: str) -> list[Ended]:
    with ranks(2, together, arguments=(case,)) as run:
        return run.wait()


def test_a_mistake_of_one_ends_all_and_is_told_by_the_first():
    first, second = ended("mistake")
    assert (first.code, second.code) == (2, 2)
    assert first.err == f"advect: rank 1 ({socket.gethostname()}): --data-dir faces is missing\n"
    assert second.err == ""


def test_a_bug_of_one_shows_its_traceback_and_the_other_one_line():
    first, second = ended("bug")
    assert (first.code, second.code) == (75, 1)
    assert first.err.startswith("advect: rank 0 (") and "lost the others, as one has failed" in first.err
    assert first.err.count("\n") == 1
    assert second.err.count("Traceback") == 1 and second.err.endswith("TypeError: a bug\n")


def test_all_end_with_the_code_that_they_agree_on():
    assert [(rank.code, rank.out) for rank in ended("stopped")] == [(143, "stopped 0\n"), (143, "stopped 1\n")]


@pytest.mark.skipif(os.name != "posix", reason="--nproc needs POSIX")
def test_under_the_launcher_the_error_alone_is_seen(tmp_path: Path):
    launcher = "import sys; from advect.distributed.launch import launch; sys.exit(launch(sys.argv[1:], 2))"
    here = Path(__file__)
    program = f"from {here.stem} import together; together('bug')"
    env = environment()
    env["PYTHONPATH"] += f"{os.pathsep}{here.parent}{os.pathsep}{here.parents[1]}"
    words = [sys.executable, "-c", launcher, sys.executable, "-c", program]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("TypeError: a bug\n")
    assert done.stderr.count("advect: ") + done.stderr.count("Traceback") == 1


def own_clock() -> None:
    """The second process counts time five times as fast, so that it alone would take fewer steps to measure one."""
    real, factor = time.perf_counter, 1 + 4 * int(os.environ["RANK"])
    time.perf_counter = lambda: factor * real()


def test_processes_of_different_speed_measure_a_step_together(tmp_path):
    with ranks(2, "train moons --dry-run --device cpu", cwd=tmp_path, before=own_clock) as run:
        first, second = run.wait(60)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "on this machine" in first.out and not second.out
