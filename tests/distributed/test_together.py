"""How several processes of one command end: real processes, by their exit codes and their words."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from processes import Ended, environment, started, wait

RANKS = """
import sys
import torch
from advect.core.errors import UserError
from advect.distributed.comm import sync_errors, all_sum, current
from advect.distributed.launch import run_shared

def mistake():
    with sync_errors():
        if current().rank == 1:
            raise UserError("--data-dir faces is missing")

def bug():
    all_sum(torch.ones(1))
    if current().rank == 1:
        raise TypeError("a bug")
    all_sum(torch.ones(1))

def stopped():
    print("stopped", current().rank)
    sys.exit(143)

run_shared({"mistake": mistake, "bug": bug, "stopped": stopped}[sys.argv[1]])
"""


def ranks(case: str) -> list[Ended]:
    with started(2, [sys.executable, "-c", RANKS, case]) as processes:
        return wait(processes)


def test_a_mistake_of_one_ends_all_and_is_told_by_the_first():
    first, second = ranks("mistake")
    assert (first.code, second.code) == (2, 2)
    assert first.err == f"advect: rank 1 ({socket.gethostname()}): --data-dir faces is missing\n"
    assert second.err == ""


def test_a_bug_of_one_shows_its_traceback_and_the_other_one_line():
    first, second = ranks("bug")
    assert (first.code, second.code) == (75, 1)
    assert first.err.startswith("advect: rank 0 (") and "lost the others, as one has failed" in first.err
    assert first.err.count("\n") == 1
    assert second.err.count("Traceback") == 1 and second.err.endswith("TypeError: a bug\n")


def test_all_end_with_the_code_that_they_agree_on():
    assert [(rank.code, rank.out) for rank in ranks("stopped")] == [(143, "stopped 0\n"), (143, "stopped 1\n")]


@pytest.mark.skipif(os.name != "posix", reason="--nproc needs POSIX")
@pytest.mark.parametrize(("case", "code", "end"), [("bug", 1, "TypeError: a bug\n"), ("mistake", 2, "is missing\n")])
def test_under_the_launcher_the_error_alone_is_seen(tmp_path: Path, case: str, code: int, end: str):
    launcher = "import sys; from advect.distributed.launch import launch; sys.exit(launch(sys.argv[1:], 2))"
    words = [sys.executable, "-c", launcher, sys.executable, "-c", RANKS, case]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith(end) and done.stderr.count("advect: ") + done.stderr.count("Traceback") == 1
