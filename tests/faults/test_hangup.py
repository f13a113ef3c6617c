"""A closed terminal: the run ends with a checkpoint, as by SIGTERM, though nothing can be printed any more."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from forked import ranks
from processes import advect_command, environment
from runs import newest_step

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs pseudo-terminals of Linux")

ENDLESS = (
    "train moons --width 16 --batch-size 32 --log-every 20 --sample-every 0 --save-every 20 --num-epochs 100000"
    " --run-dir run"
)


def test_a_closed_terminal_ends_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    options = {"cwd": tmp_path, "env": environment(), "start_new_session": True, "preexec_fn": take_terminal}
    with subprocess.Popen(advect_command(ENDLESS), **streams, **options) as run:
        os.close(slave)
        os.set_blocking(master, False)
        until = time.monotonic() + 60
        while newest_step(tmp_path / "run") < 20 and time.monotonic() < until:
            try:
                os.read(master, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
        before = newest_step(tmp_path / "run")
        os.close(master)
        assert run.wait(60) == 128 + signal.SIGHUP
    assert newest_step(tmp_path / "run") >= before >= 20
    assert not list((tmp_path / "run").rglob("*.partial"))


def take_terminal() -> None:
    """Make standard input the terminal that this process, the first of its session, is told of when it closes."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    hear_hangups()


def hear_hangups() -> None:
    """Whoever started the tests may have told them to ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ignore_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize("times", [1, 3])
def test_hangups_end_a_run_with_a_checkpoint_however_many(tmp_path: Path, times: int) -> None:
    with ranks(1, ENDLESS, cwd=tmp_path, before=hear_hangups) as run:
        while run.alive() and newest_step(tmp_path / "run") < 20:
            time.sleep(0.005)
        for _ in range(times):
            run.signal(signal.SIGHUP)
        (ended,) = run.wait()
    assert ended.code == 128 + signal.SIGHUP
    step = newest_step(tmp_path / "run")
    assert "stopped by SIGHUP; to go on, type: advect train --resume-from run" in ended.out and step >= 20


def test_under_nohup_a_closed_terminal_is_nothing(tmp_path: Path) -> None:
    with ranks(1, f"{ENDLESS} --max-steps 60", cwd=tmp_path, before=ignore_hangups) as run:
        while run.alive() and newest_step(tmp_path / "run") < 20:
            time.sleep(0.005)
        run.signal(signal.SIGHUP)
        (ended,) = run.wait()
    assert (ended.code, newest_step(tmp_path / "run")) == (0, 60)
