"""Several processes of one command: started, told to stop, failing and left alone, with real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from advect.cli import main
from advect.core.errors import UserError
from advect.distributed.launch import check_nproc
from forked import advect_ranks
from processes import environment

pytestmark = pytest.mark.skipif(os.name != "posix", reason="--nproc needs POSIX")

# Each rank runs CASE in its own words; the launcher is a process too, as it takes over signals.
LAUNCHER = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have it ignored
from advect.distributed.launch import launch
sys.exit(launch([sys.executable, "-c", sys.argv[1]], int(sys.argv[2])))
"""
RANK = """
import os, signal, sys, time
from pathlib import Path
from advect.distributed.launch import hold_lifeline
assert hold_lifeline()
rank = int(os.environ["RANK"])
def note(text):
    with Path(f"rank{rank}").open("a") as file:
        file.write(text)
def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)
"""
STOPPED_BY_SIGNAL = """
got = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
note("up ")
while not got:
    time.sleep(0.01)
time.sleep(0.3)
note(" ".join(got))
sys.exit(128 + signal.Signals[got[0]])
"""


@contextmanager
def launcher(folder: Path, case: str, nproc: int = 2, **variables: object) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", LAUNCHER, RANK + case, str(nproc)]
    env, pipe = environment(**variables), subprocess.PIPE
    process = subprocess.Popen(words, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(folder: Path, case: str, nproc: int = 2, **variables: object) -> tuple[int, str, str]:
    with launcher(folder, case, nproc, **variables) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_until(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited for a minute"
        time.sleep(0.02)


def said(folder: Path, rank: int) -> str:
    """What a rank has noted; a file is there before its text."""
    file = folder / f"rank{rank}"
    return file.read_text() if file.exists() else ""


def test_each_process_knows_its_place_and_only_the_first_is_heard(tmp_path):
    case = """
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
note(" ".join(os.environ[name] for name in names))
print("hello of", rank)
print("error of", rank, file=sys.stderr)
"""
    code, out, err = run(tmp_path, case, 2, OMP_NUM_THREADS=7)
    assert (code, out, err) == (0, "hello of 0\n", "error of 0\n")
    assert (tmp_path / "rank0").read_text() == "0 2 0 2 127.0.0.1 7"
    assert (tmp_path / "rank1").read_text() == "1 2 1 2 127.0.0.1 7"


def test_the_first_error_is_what_is_seen_and_ends_the_others(tmp_path):
    case = """
signal.signal(signal.SIGTERM, lambda *_: (note("told"), sys.exit(143)))
note("up")
if rank == 1:
    raise TypeError("a bug of rank 1")
time.sleep(600)
"""
    code, _, err = run(tmp_path, case, 3)
    assert code == 1
    assert err.count("Traceback") == 1 and err.endswith("TypeError: a bug of rank 1\n")
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank2").read_text() == "uptold"


def test_a_process_that_ignores_sigterm_is_killed_after_a_while(tmp_path):
    case = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note(str(os.getpid()))
if rank == 1:
    wait_for("rank0")
    sys.exit(2)
time.sleep(600)
"""
    assert run(tmp_path, case)[0] == 2
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "rank0").read_text()), 0)


def test_a_process_that_was_killed_is_named(tmp_path):
    case = "wait_for('rank0') if rank else note('up')\nif rank: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    code, _, err = run(tmp_path, case)
    assert code == 128 + signal.SIGKILL
    assert err == "advect: rank 1 was ended by SIGKILL; this is often a lack of memory\n"


def test_who_fails_only_as_another_did_is_not_to_blame(tmp_path):
    case = """
if rank == 0:
    sys.exit(75)
time.sleep(0.5)
print("the cause", file=sys.stderr)
sys.exit(2)
"""
    assert run(tmp_path, case) == (2, "", "the cause\n")


def test_warnings_of_all_are_passed_on_while_they_run(tmp_path):
    case = """
for i in range(2):
    print("note: unheard", file=sys.stderr)
    print("warning: rank", rank, "waits", i, file=sys.stderr, flush=True)
wait_for("heard")
if rank:
    print("the cause", file=sys.stderr)
    sys.exit(2)
time.sleep(600)
"""
    with launcher(tmp_path, case) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(6)]
        (tmp_path / "heard").touch()
        rest = process.communicate(timeout=60)[1]
    assert [line for line in lines if "rank 1" in line] == [f"warning: rank 1 waits {i}\n" for i in range(2)]
    assert rest == "note: unheard\nnote: unheard\nthe cause\n" and process.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_reaches_each_process_once(tmp_path, number):
    with launcher(tmp_path, STOPPED_BY_SIGNAL) as process:
        wait_until(lambda: all(said(tmp_path, rank) for rank in range(2)))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == [f"up {number.name}"] * 2


def test_a_second_hangup_is_not_passed_on(tmp_path):
    """A closed terminal and its shell both send one, and a second signal ends a rank at once."""
    case = "heard = []\nsignal.signal(signal.SIGHUP, lambda *_: (heard.append(1), note(' hangup')))\nnote('up')\n"
    case += "while not heard:\n    time.sleep(0.01)\nwait_for('sent')\ntime.sleep(0.2)\nsys.exit(129)"
    with launcher(tmp_path, case) as process:
        wait_until(lambda: all(said(tmp_path, rank) for rank in range(2)))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: all("hangup" in said(tmp_path, rank) for rank in range(2)))
        process.send_signal(signal.SIGHUP)
        (tmp_path / "sent").touch()
        assert process.wait(60) == 129
    assert [said(tmp_path, rank) for rank in range(2)] == ["up hangup"] * 2


def test_ctrl_c_in_a_terminal_reaches_each_process_once(tmp_path):
    """The terminal signals the whole foreground group; a new session stands for it."""
    words = [sys.executable, "-c", LAUNCHER, RANK + STOPPED_BY_SIGNAL, "2"]
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), start_new_session=True)
    wait_until(lambda: all(said(tmp_path, rank) for rank in range(2)))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["up SIGINT"] * 2


def test_nothing_is_left_where_the_launcher_is_killed(tmp_path):
    case = """
signal.signal(signal.SIGTERM, lambda *_: (note(" told"), sys.exit(143)))
note(str(os.getpid()))
time.sleep(600)
"""
    with launcher(tmp_path, case) as process:
        notes = [tmp_path / f"rank{rank}" for rank in range(2)]
        wait_until(lambda: all(note.exists() and note.read_text() for note in notes))
        process.kill()
        wait_until(lambda: all(note.read_text().endswith(" told") for note in notes))
        wait_until(lambda: not any(alive(int(note.read_text().split()[0])) for note in notes))


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nproc_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_nproc(2, "auto")
    check_nproc(8, "cpu")
    with pytest.raises(UserError, match="--nproc must be at least 1 and at most 1,024, got 0"):
        check_nproc(0, "auto")
    with pytest.raises(UserError, match="--nproc 3 is more than the GPUs here, 2; use --nproc 2, or --device cpu"):
        check_nproc(3, "auto")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--nproc 2 is given to one of"):
        check_nproc(2, "cpu")


def test_a_mistake_of_all_is_told_once(tmp_path):
    first, second = advect_ranks(2, "train moons --batch-size 0", cwd=tmp_path, code=2)
    assert first.err.startswith("advect: --batch-size must be at least 1 and") and first.err.count("\n") == 1
    assert second.err == ""


@pytest.mark.parametrize("module", ["run", pytest.param("launch", marks=pytest.mark.slow)])
def test_the_launchers_of_pytorch_start_the_command_line(tmp_path, module):
    words = ["--nproc_per_node=2", "--master_port=0", "-m", "advect", "train", "moons", "--dry-run"]
    words = [sys.executable, "-m", f"torch.distributed.{module}", "--standalone", *words]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("batch_size:") == 1


RESTARTED = """
import os, sys
from advect.distributed.comm import all_objects, process_group
with process_group() as me:
    told = all_objects(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if told == ["0", "0"] and me.rank == 1:
        os._exit(3)
    all_objects(None)
    if me.is_first:
        print("together at", *told)
"""


@pytest.mark.slow
def test_processes_that_torchrun_starts_anew_meet_again(tmp_path):
    (tmp_path / "program.py").write_text(RESTARTED)
    words = ["--standalone", "--nproc_per_node=2", "--max-restarts=1", "program.py"]
    words = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment(ADVECT_TIMEOUT=20), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "together at 1 1\n"), done.stderr


def test_the_place_that_a_launcher_puts_before_all_words_is_taken(monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["advect", "--local-rank=3", "presets"])
    main()
    assert os.environ["LOCAL_RANK"] == "3" and "digits" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--nproc 2", "--nproc=2"])
def test_nproc_runs_the_same_words_without_it(advect, monkeypatch, flag):
    told = []
    monkeypatch.setattr("advect.distributed.launch.launch", lambda *words: told.append(words) or 7)
    for words in (f"train moons {flag} --width 16 --device cpu", f"sample runs/moons {flag} --device cpu"):
        with pytest.raises(SystemExit) as stop:
            advect(words)
        assert stop.value.code == 7
    before = [sys.executable, "-m", "advect"]
    assert told == [
        ([*before, "train", "moons", "--width", "16", "--device", "cpu"], 2),
        ([*before, "sample", "runs/moons", "--device", "cpu"], 2),
    ]
    with pytest.raises(UserError, match="--nproc must be at least 1 and at most 1,024, got -1"):
        advect("train moons --nproc -1")
