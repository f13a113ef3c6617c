"""Writing, replacing and removing checkpoints, killed with SIGKILL before each of their file operations in turn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import advect
from advect.checkpoint.manifest import list_checkpoints
from advect.training import find_checkpoint, verify_checkpoint, write_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# Each try is a forked copy of one process, which has paid for its imports, in its own copy of the folder. Python
# tells its audit hooks of each file operation before it happens; at the n-th one's announcement the hook kills.
PROGRAM = """
import json, os, shutil, signal, sys
from pathlib import Path
from advect.checkpoint.manifest import retain, write_checkpoint

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")

def fill(folder):
    (folder / "state").mkdir()
    (folder / "model.bin").write_bytes(b"new" * 1000)
    (folder / "state" / "run.json").write_text("new")

def kill_before(n):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in WATCHED:
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
    sys.addaudithook(hook)

def killed(base, copy, action, n):
    shutil.copytree(base, copy)
    pid = os.fork()
    if pid == 0:
        kill_before(n)
        exec(action, {"folder": copy / "checkpoints", "fill": fill, "write": write_checkpoint, "keep": retain})
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return False
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return True

for base, root, action in json.loads(sys.argv[1]):
    n = 0
    while killed(base, Path(root, f"{n:03d}"), action, n):
        n += 1
"""

ACTIONS = {
    "write": ([5, 10], "write(folder, 15, fill)"),
    "replace": ([10], "write(folder, 10, fill)"),
    "remove": ([1, 2, 3], "keep(folder, 1)"),
}


def old(step: int):
    return lambda folder: (folder / "model.bin").write_bytes(b"old" * 1000 + bytes([step])) and None


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder for each action: ``base``, the run before it, and 000, 001, ..., killed ever later, the last not."""
    folder = tmp_path_factory.mktemp("killed")
    jobs = []
    for name, (steps, action) in ACTIONS.items():
        for step in steps:
            write_checkpoint(folder / name / "base" / "checkpoints", step, old(step))
        jobs.append((str(folder / name / "base"), str(folder / name), action))
    environment = {**os.environ, "PYTHONPATH": str(Path(advect.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(jobs)], check=True, env=environment)
    return folder


def copies(folder: Path, at_least: int) -> list[Path]:
    found = sorted(folder.glob("[0-9]*"))
    assert len(found) > at_least
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def is_new(path: Path) -> bool:
    """Whether a whole checkpoint is the new one, else an old one; nothing in between."""
    verify_checkpoint(path)
    data = {name: value for name, value in content(path).items() if name != "manifest.json"}
    if data == {"model.bin": b"new" * 1000, "state/run.json": b"new"}:
        return True
    assert data.keys() == {"model.bin"} and data["model.bin"].startswith(b"old" * 1000)
    return False


def test_a_killed_write_is_whole_or_absent_and_the_others_are_untouched(killed):
    found = []
    for run in copies(killed / "write", 10):
        for name in ("step-00000005", "step-00000010"):
            assert content(run / "checkpoints" / name) == content(killed / "write" / "base" / "checkpoints" / name)
        whole = list_checkpoints(run / "checkpoints")
        assert [p.name for p in whole if is_new(p)] in ([], ["step-00000015"])
        shown = [name for name in os.listdir(run / "checkpoints") if not name.startswith(".")]
        assert sorted(shown) == ["latest", *(p.name for p in whole)]
        found.append(is_new(find_checkpoint(run)))
    assert found == sorted(found) and not found[0] and found[-1]  # from some point on, the new one is the latest


def test_a_killed_replacement_leaves_the_old_or_the_new_one_to_find(killed):
    found = [is_new(find_checkpoint(run)) for run in copies(killed / "replace", 10)]
    assert found == sorted(found) and not found[0] and found[-1]


def test_a_killed_removal_leaves_whole_checkpoints(killed):
    left = []
    for run in copies(killed / "remove", 3):
        whole = list_checkpoints(run / "checkpoints")
        for path in whole:
            assert content(path) == content(killed / "remove" / "base" / "checkpoints" / path.name)
        assert find_checkpoint(run).name == "step-00000003"
        left.append(len(whole))
    assert left == sorted(left, reverse=True) and left[0] == 3 and left[-1] == 1


@pytest.mark.parametrize("action", ACTIONS)
def test_the_next_write_finds_the_newest_and_clears_the_rest(killed, tmp_path, action):
    for killed_run in copies(killed / action, 3):
        run = shutil.copytree(killed_run, tmp_path / killed_run.name)
        write_checkpoint(run / "checkpoints", 99, old(99))
        whole = list_checkpoints(run / "checkpoints")
        for path in whole:
            verify_checkpoint(path)
        names = [p.name for p in whole]
        assert f"step-{max(ACTIONS[action][0]):08d}" in names
        assert sorted(os.listdir(run / "checkpoints")) == ["latest", *names]
        assert find_checkpoint(run).name == "step-00000099"
