from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from advect.core import files as lock
from advect.core.errors import UserError
from advect.core.files import lock_folder
from processes import environment

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="needs flock")

HOLDER = """
import sys, time
from pathlib import Path
from advect.core.files import lock_folder
with lock_folder(Path("."), "--run-dir"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_until_its_owner_is_killed(tmp_path: Path):
    words = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        who = f"--run-dir .* is in use by process {other.pid} on {socket.gethostname()}; wait for it, end it"
        for _ in range(2):  # a refusal changes nothing
            with pytest.raises(UserError, match=who), lock_folder(tmp_path, "--run-dir"):
                pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock_folder(tmp_path, "--run-dir"):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {socket.gethostname()}\n"


def test_the_lock_ends_with_the_block_and_with_an_error(tmp_path: Path):
    for _ in range(2):
        with pytest.raises(RuntimeError), lock_folder(tmp_path, "--run-dir"):
            with pytest.raises(UserError, match="in use by process"), lock_folder(tmp_path, "--run-dir"):
                pass
            raise RuntimeError


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    caplog.set_level("INFO", "advect")
    with lock_folder(tmp_path, "--run-dir"):
        pass
    assert len(caplog.messages) == 1 and "cannot be locked (No locks available)" in caplog.messages[0]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path):
    with (
        pytest.raises(UserError, match=r"--run-dir .*missing cannot be written to"),
        lock_folder(tmp_path / "missing", "--run-dir"),
    ):
        pass
